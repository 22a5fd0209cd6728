"""All figures of a result file, whatever its kind: what :mod:`benchmarks.comparison` pairs with another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from benchmarks import documents, records, summary
from benchmarks.networks import records as networks
from benchmarks.networks.records import NetworkRun
from benchmarks.networks.sides import FUSED
from benchmarks.records import EAGER, PEER, Cell, Entry, FirstCall, Run

AnyRun: TypeAlias = Run | NetworkRun

# Whose figure it is: that of code of ours, that of a peer, which nobody here has changed, or of a ceiling.
OURS, CONTROL, CEILING = "ours", "control", "ceiling"
PLAIN = "plain calls"


class Incomparable(ValueError):
    """Two runs cannot be compared."""


class Figure(NamedTuple):
    """All times of somebody in a cell. ``missing``: why there are none. ``memory``: bytes at the peak.

    ``group``: cells that belong together. ``stratum``: figures that are scattered alike from run to run.
    """

    cell: str
    group: str
    stratum: str
    name: str
    role: str
    seconds: list[float]
    missing: str | None = None
    memory: int | None = None


_NO_TIMES = {
    documents.COMPILED: "a table of what compilers make",
    documents.COUNTERS: "a table of a GPU's counters",
}


def load(path: Path) -> AnyRun:
    """A run of whatever kind.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no result of a run, or does not fit its schema.
    """
    kind = documents.kind_of(documents.read(path))
    if kind in _NO_TIMES:
        raise ValueError(f"{path} must have measured times, and is {_NO_TIMES[kind]}")
    return networks.load(path) if kind == documents.NETWORKS else records.load(path)


def figures(run: AnyRun) -> dict[tuple[str, str], Figure]:
    """All figures by cell and name.

    Raises:
        Incomparable: two have the same.
    """
    found: dict[tuple[str, str], Figure] = {}
    for figure in _of_networks(run) if isinstance(run, NetworkRun) else _of_ops(run):
        if (figure.cell, figure.name) in found:
            raise Incomparable(f"{figure.cell} must be in a run once, and {figure.name} is there twice")
        found[figure.cell, figure.name] = figure
    return found


def _of_networks(run: NetworkRun) -> Iterator[Figure]:
    for cell in run.cells:
        threads = summary.where(cell.dtype, cell.threads)
        label = f"{cell.name}, {cell.which}, {threads}, {cell.layout}"
        group = f"{cell.kind}, {cell.which}, {threads}"
        for side in cell.sides:
            # The paper's equations are plain PyTorch, however they are wrapped.
            role = OURS if side.name == FUSED else CONTROL
            missing = None if side.seconds else side.reason or "it was not timed"
            yield Figure(label, group, threads, side.name, role, side.seconds, missing, side.peak_bytes)


def _of_ops(run: Run) -> Iterator[Figure]:
    for cell in run.cells:
        label = summary.describe(cell)
        threads = summary.where(cell.dtype, cell.threads)
        group = f"{cell.op} {cell.which}, {threads}"
        # Unchanged code is scattered more on two threads than on one.
        stratum = "GPU" if cell.threads is None else f"{cell.threads} thread(s)"
        for entry in cell.entries:
            yield from _of_entry(entry, label, group, stratum)
        yield from _ceiling(cell, label, group, stratum)
    for call in run.first_calls:
        yield _first_call(call)


def _first_call(call: FirstCall) -> Figure:
    label = f"first call, {call.op} {call.shape.label} {call.dtype}, caches {'cold' if call.cold else 'warm'}"
    role = OURS if call.name.startswith("vt_fast") else CONTROL
    return Figure(label, "first calls", "first calls", call.name, role, call.first, call.reason)


def _of_entry(entry: Entry, cell: str, group: str, stratum: str) -> Iterator[Figure]:
    role = CONTROL if entry.kind == PEER else OURS
    seconds, plain = entry.seconds, entry.eager_seconds
    missing = None if entry.timed else f"{entry.status}: {entry.reason}" if entry.reason else entry.status
    if entry.timed_as == EAGER:
        seconds, plain, missing = [], plain or entry.seconds, entry.note
    yield Figure(cell, group, stratum, entry.name, role, seconds, missing, entry.extra_bytes)
    if plain:
        yield Figure(
            cell, f"{group}, {PLAIN}", f"{stratum}, {PLAIN}", f"{entry.name}, plain call", role, plain
        )


def _ceiling(cell: Cell, label: str, group: str, stratum: str) -> Iterator[Figure]:
    """The ceiling that bounds the cell, in seconds per byte or FLOP: sizes may differ from run to run."""
    floor = cell.floor
    if floor is None:
        return
    if cell.bound == "bytes":
        times = [seconds / floor.copy_bytes for seconds in floor.copy_seconds]
    else:
        times = [seconds / floor.matrix_flops for seconds in floor.matrix_seconds]
    yield Figure(label, group, stratum, f"ceiling of {cell.bound}", CEILING, times)

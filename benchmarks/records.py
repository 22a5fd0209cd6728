"""What a run leaves behind: plain data, all raw times included, to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import Shape
from benchmarks.timing import HasSeconds

SCHEMA = 1

# Kinds of contenders: ours is the first usable backend, "backend" any other of vt_fast's.
OURS, BACKEND, PEER = "ours", "backend", "peer"
# What a figure on a GPU is of.
GRAPH, EAGER = "graph", "eager"
# What became of one: only "ok" has a figure.
OK, WRONG, SKIPPED, UNAVAILABLE, FAILED = "ok", "wrong", "skipped", "unavailable", "failed"
# In place of a figure in a table.
SHORT = {WRONG: "wrong", SKIPPED: "skip", UNAVAILABLE: "n/a", FAILED: "fail"}


@dataclass
class Entry(HasSeconds):
    """One contender in one cell. ``extra_bytes``: its peak above inputs, results and gradients.

    On a GPU, ``seconds`` are those of a captured graph, or of plain calls where ``timed_as`` says so, and
    ``eager_seconds`` always those of plain calls. ``note``: what else is to be said of it. ``needs_bytes``:
    what the process would hold, all in all, by prediction, where there was a limit for it.
    """

    name: str
    kind: str
    status: str = OK
    reason: str | None = None
    errors: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    extra_bytes: int | None = None
    eager_seconds: list[float] = field(default_factory=list)
    timed_as: str | None = None
    note: str | None = None
    needs_bytes: int | None = None

    @property
    def eager_ratio(self) -> float | None:
        """The time of a plain call in multiples of the graph's, on a GPU."""
        if not self.timed or not self.eager_seconds:
            return None
        return statistics.median(self.eager_seconds) / self.median

    @property
    def too_large(self) -> int | None:
        """The bytes that it would need, where they are why it was not run."""
        # Who is skipped for another reason is skipped before that is predicted.
        return self.needs_bytes if self.status == SKIPPED else None

    @property
    def timed(self) -> bool:
        """Whether it has a figure."""
        return self.status == OK and bool(self.seconds)


class HasRates:
    """Every repetition of two ceilings, in seconds, and what one repetition does."""

    copy_seconds: list[float]
    copy_bytes: int
    matrix_seconds: list[float]
    matrix_flops: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second, reads and writes both counted."""
        return self.copy_bytes / statistics.median(self.copy_seconds)

    @property
    def matrix_rate(self) -> float:
        """FLOPs per second."""
        return self.matrix_flops / statistics.median(self.matrix_seconds)


@dataclass
class Floor(HasRates):
    """The terms of a cell's floor, and every repetition of the two ceilings that were measured around it.

    What reading alone takes is kept for information, where it was measured.
    """

    maps: int
    flops: int
    copy_bytes: int
    copy_seconds: list[float]
    matrix_flops: int
    matrix_seconds: list[float]
    read_bytes: int = 0
    read_seconds: list[float] = field(default_factory=list)

    def terms(self, map_bytes: int) -> dict[str, float]:
        """Seconds by each term.

        Example:
            >>> Floor(2, 30, 10, [1.0], 10, [1.0]).terms(map_bytes=50)
            {'bytes': 10.0, 'flops': 3.0}
        """
        return {"bytes": self.maps * map_bytes / self.bandwidth, "flops": self.flops / self.matrix_rate}


@dataclass
class Cell:
    """One case in one pass on so many threads, with everybody who took part. A GPU has no threads.

    ``parts`` is the case's. ``series``: of a run in series, which of them the cell belongs to, and its value.
    """

    op: str
    shape: Shape
    dtype: str
    layout: str
    threads: int | None
    which: str
    map_bytes: int
    floor: Floor | None
    entries: list[Entry]
    parts: int | None = None
    series: dict[str, int] = field(default_factory=dict)

    @property
    def ours(self) -> Entry | None:
        """Our entry, if it was measured at all."""
        return next((entry for entry in self.entries if entry.kind == OURS), None)

    @property
    def best_peer(self) -> Entry | None:
        """The fastest of all peers."""
        peers = [entry for entry in self.entries if entry.kind == PEER and entry.timed]
        return min(peers, key=lambda entry: entry.median, default=None)

    @property
    def floor_seconds(self) -> float | None:
        """The larger term."""
        return None if self.floor is None else max(self.floor.terms(self.map_bytes).values())

    @property
    def bound(self) -> str | None:
        """Which term that is."""
        if self.floor is None:
            return None
        found = self.floor.terms(self.map_bytes)
        return max(found, key=lambda name: found[name])

    @property
    def over_floor(self) -> float | None:
        """Our time in multiples of the floor."""
        ours, least = self.ours, self.floor_seconds
        return None if ours is None or not ours.timed or least is None else ours.median / least

    @property
    def reached(self) -> float | None:
        """The floor in multiples of our time: 1 is as fast as can be."""
        return None if self.over_floor is None else 1 / self.over_floor

    @property
    def best_ratio(self) -> float | None:
        """The best peer's time in multiples of ours."""
        ours, peer = self.ours, self.best_peer
        return None if ours is None or not ours.timed or peer is None else peer.median / ours.median


@dataclass
class FirstCall:
    """What a fresh process waits for, in seconds, one number for each process.

    ``cold``: nothing was in the caches of compilers. The imports are those of torch, and of vt_fast where it
    is used. ``reason``: why there is no figure.
    """

    name: str
    op: str
    shape: Shape
    dtype: str
    cold: bool
    import_torch: list[float] = field(default_factory=list)
    import_vt_fast: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    reason: str | None = None


@dataclass
class AnyRun:
    """What all runs have.

    ``problems``: cases that could not be measured at all. ``complete``: it was not stopped before its end.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    cells: list[Any]
    problems: list[str] = field(default_factory=list)
    complete: bool = True
    schema: int = SCHEMA


@dataclass
class Run(AnyRun):
    """One run of any mode of ``python -m benchmarks`` but ``models``."""

    cells: list[Cell]
    first_calls: list[FirstCall] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return self.settings.get("device") is not None


def cell_from(data: dict[str, Any]) -> Cell:
    """A cell again, from :func:`dataclasses.asdict`."""
    floor = None if data["floor"] is None else Floor(**data["floor"])
    entries = [Entry(**entry) for entry in data["entries"]]
    return Cell(**{**data, "shape": Shape(*data["shape"]), "floor": floor, "entries": entries})


def save(run: Run, path: Path) -> None:
    """Write a run as JSON, see :func:`write`."""
    write(dataclasses.asdict(run), path)


def write(data: dict[str, Any], path: Path) -> None:
    """Write a result file; whoever reads it meanwhile sees the old one or the new one.

    Raises:
        ValueError: the data do not fit the schema of such files. They are in a file ``path`` + ``.part``
            then, and the old file is as it was: what took an hour to measure is not thrown away.
    """
    from benchmarks import documents

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(data, indent=1) + "\n")
    documents.check(data, draft)
    draft.replace(path)


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        ValueError: the file is of another schema.
    """
    data = json.loads(path.read_text())
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path} must have schema {SCHEMA}, got {data.get('schema')}")
    first_calls = [
        FirstCall(**{**each, "shape": Shape(*each["shape"])}) for each in data.get("first_calls", [])
    ]
    cells = [cell_from(cell) for cell in data["cells"]]
    return Run(**{**data, "cells": cells, "first_calls": first_calls})

"""Result files: CSV with one row a measurement, below a head of ``# key: JSON`` lines about the run."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from pandas import DataFrame

OURS, BACKEND, PEER, REPLACED, CEILING = "ours", "backend", "peer", "replaced", "ceiling"
PART = "part"  # of our time, in a profile
# Only "ok" has a time.
OK, WRONG, SKIPPED, UNAVAILABLE, FAILED = "ok", "wrong", "skipped", "unavailable", "failed"
# In place of a time in a table.
SHORT = {WRONG: "wrong", SKIPPED: "skip", UNAVAILABLE: "n/a", FAILED: "fail"}


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"which": "pass"}):
    """One contender in one pass of one case.

    Args:
        mode: of the command: "ops", "stack", "layers", "hosts", "models", "switches", "scaling",
            "overhead", "profile"; or "ceilings".
        case: the op, layer or network; of a ceiling, what is measured.
        shape: "BxNxCxL", or the input's.
        which: the pass, in the file "pass": "forward", "forward+backward", "inference", "training step".
        threads: of a CPU; None on a GPU.
        series: of ``scaling``: what varies, and its value here: "N=196", several of them divided by blanks;
            of ``hosts``: "whole model" or "module".
        contender: what is measured.
        role: "ours" is the first usable backend, "backend" any other, or ours compiled or frozen; "replaced"
            computes something else, whose place ours takes, and is no alternative to it; "part" is a part
            of our time, in ``profile``.
        clock: "wall"; on a GPU "graph" for a captured graph, in ``overhead`` "calls" for plain calls.
        status: "ok", or why there is no time; ``reason`` says more.
        median: seconds; ``low`` and ``high`` leave a fifth of the times below and above.
        rounds: how many times there are.
        floor: the least seconds that the job can take, for all contenders; ``bound``: what sets it.
        work: FLOPs of a contender in an op; of a ceiling, bytes or FLOPs of one repetition.
        extra_bytes: peak of memory above inputs, results and gradients.
        needs_bytes: of one that was not run, what it would hold, by prediction.
        error: the largest error in multiples of the allowed one.
        note: anything else.
    """

    mode: str
    case: str
    shape: str = ""
    dtype: str = ""
    layout: str = ""
    which: str = ""
    threads: int | None = None
    series: str = ""
    contender: str
    role: Literal["ours", "backend", "peer", "replaced", "ceiling", "part"]
    clock: Literal["wall", "graph", "calls"] = "wall"
    status: Literal["ok", "wrong", "skipped", "unavailable", "failed"] = "ok"
    median: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    floor: float | None = None
    bound: Literal["", "bytes", "flops"] = ""
    work: float | None = None
    extra_bytes: int | None = None
    needs_bytes: int | None = None
    error: float | None = None
    reason: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if (self.median is not None) != (self.status == OK):
            raise ValueError(
                f"`median` must be given if and only if `status` is ok, got {self.median} and {self.status}"
            )
        if self.status != OK and not self.reason:
            raise ValueError(f"`reason` must say why the status is {self.status}")

    @property
    def where(self) -> str:
        """Threads and clock in words."""
        return ", ".join(filter(None, (place(self.threads), "plain calls" if self.clock == "calls" else "")))

    @property
    def label(self) -> str:
        """The cell in words. Rows of a file with the same label compete with each other."""
        what = " ".join(filter(None, (self.case, self.shape, self.dtype, self.layout, self.which)))
        return ", ".join(filter(None, (what, self.where)))

    @property
    def key(self) -> tuple[str, str]:
        """What tells a row from all others of a file."""
        return self.label, self.contender


COLUMNS = msgspec.structs.fields(Row)


@dataclass
class Run:
    """A run: ``facts`` about the machine, the versions and the settings, and the rows.

    Facts that every run has: "machine", "settings", "commit", "complete" (it was not stopped before its end)
    and "problems" (cases that could not be measured at all).
    """

    facts: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


def place(threads: float | None, dtype: str = "") -> str:
    """Dtype and threads, of which a GPU has none.

    Example:
        >>> place(2, "fp32"), place(None, "fp32"), place(1)
        ('fp32, 2 threads', 'fp32', '1 thread')
    """
    count = "" if threads is None or threads != threads else f"{threads:.0f} thread{'s' * (threads != 1)}"
    return ", ".join(filter(None, (dtype, count)))


def frame(rows: Iterable[Row]) -> DataFrame:
    """The rows with, beside their own fields, what follows from the other rows of their cells.

    ``cell`` is the label; ``over_floor`` the time over the floor; ``fastest`` the fastest alternative,
    ``fastest_median`` its time and ``fastest_bytes`` its memory; ``ours`` our time. ``relative`` is the time
    over ours, and ``speedup`` that of the fastest alternative. What is missing is NaN.

    Raises:
        ValueError: a contender is there twice in a cell.
    """
    import pandas as pd

    given = list(rows)
    data = pd.DataFrame([msgspec.structs.asdict(row) for row in given], columns=Row.__struct_fields__)
    numbers = ["threads", "median", "low", "high", "floor", "work", "extra_bytes", "needs_bytes", "error"]
    data[numbers] = data[numbers].astype(float)
    data["cell"], data["where"] = [row.label for row in given], [row.where for row in given]
    for twice in data[data.duplicated(["cell", "contender"])].itertuples():
        raise ValueError(f"a run must have a row once, {twice.contender} is there twice in {twice.cell}")
    peers = data[data.role == PEER].dropna(subset="median").sort_values("median", kind="stable")
    fastest = peers.drop_duplicates("cell").set_index("cell")
    for name, column in {
        "fastest": "contender",
        "fastest_median": "median",
        "fastest_bytes": "extra_bytes",
    }.items():
        data[name] = data.cell.map(fastest[column])
    data["ours"] = data.cell.map(data[data.role == OURS].set_index("cell")["median"])
    data["over_floor"] = data["median"] / data.floor
    data["relative"], data["speedup"] = data["median"] / data.ours, data.fastest_median / data.ours
    return data


def save(run: Run, path: Path) -> None:
    """Write a result file."""
    write(path, run.facts, [column.encode_name for column in COLUMNS], map(_written, run.rows))


def write(
    path: Path, facts: Mapping[str, Any], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write a CSV file below its facts; a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with draft.open("w", newline="") as file:
        for key, value in facts.items():
            file.write(f"# {key}: {json.dumps(value)}\n")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(path)


def load(path: Path) -> Run:
    """Read and validate a result file.

    Raises:
        ValueError: it is no result file; the message names the line.
    """
    facts, table = read(path)
    rows: list[Row] = []
    for number, data in enumerate(table, len(facts) + 2):
        given = {name: value for name, value in data.items() if value != ""}
        try:
            rows.append(msgspec.convert(given, Row, strict=False))
        except (msgspec.ValidationError, ValueError) as error:
            raise ValueError(f"{path} must be a result file, line {number}: {error}") from None
    missing = [key for key in ("machine", "settings", "commit", "complete", "problems") if key not in facts]
    if missing:
        raise ValueError(f"{path} must be a result file with the facts {', '.join(missing)} at its head")
    return Run(facts, rows)


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The facts and the rows of a CSV file as :func:`write` leaves it."""
    facts: dict[str, Any] = {}
    with path.open(newline="") as file:
        try:
            return facts, list(csv.DictReader(_body(file, facts, path)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} must be a result file: {error}") from None


def _body(lines: Iterable[str], facts: dict[str, Any], path: Path) -> Iterator[str]:
    for line in lines:
        if not line.startswith("# "):
            yield line
            continue
        key, _, text = line[2:].partition(": ")
        try:
            facts[key] = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} must be a result file, the fact {key}: {error}") from None


def _written(row: Row) -> dict[str, Any]:
    data = msgspec.structs.asdict(row)
    data["pass"] = data.pop("which")
    return {
        key: f"{value:.5g}" if isinstance(value, float) else "" if value is None else value
        for key, value in data.items()
    }

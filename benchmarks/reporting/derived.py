"""What is drawn and tabulated of a run, from the times and bytes in its file alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.records import OURS, PEER, Cell, Entry
from benchmarks.summary import geometric_mean

BEST = "best peer"


class Achieved(NamedTuple):
    """What a cell's time makes of its compulsory bytes and FLOPs: rates per second, and FLOPs per byte."""

    bandwidth: float
    flop_rate: float
    intensity: float


def achieved(cell: Cell, entry: Entry | None) -> Achieved | None:
    """The rates of an entry of a cell, or None where it or the floor was not measured."""
    if cell.floor is None or entry is None or not entry.timed:
        return None
    moved = cell.floor.maps * cell.map_bytes
    return Achieved(moved / entry.median, cell.floor.flops / entry.median, cell.floor.flops / moved)


class Comparison(NamedTuple):
    """A peer's time in multiples of ours, one for each cell where both have one; and why others have none."""

    name: str
    ratios: list[float]
    without: Counter[str]

    @property
    def mean(self) -> float:
        """The geometric mean; NaN where there is no ratio."""
        return geometric_mean(self.ratios)


def compare(cells: Iterable[Cell], name: str) -> Comparison:
    """A peer in the cells that ours has a time in; ``BEST`` is whoever is the fastest in each."""
    found = Comparison(name, [], Counter())
    for cell in cells:
        ours = cell.ours
        if ours is None or not ours.timed:
            continue
        entry = cell.best_peer if name == BEST else _entry(cell, name)
        if entry is None:
            continue
        if entry.timed:
            found.ratios.append(entry.median / ours.median)
        else:
            found.without[entry.status] += 1
    return found


def extra_maps(cells: Iterable[Cell], name: str) -> list[float]:
    """Peak memory of a contender above inputs, results and gradients, in maps; "ours" by that name."""
    entries = [(cell, cell.ours if name == OURS else _entry(cell, name)) for cell in cells]
    return [
        entry.extra_bytes / cell.map_bytes
        for cell, entry in entries
        if entry is not None and entry.extra_bytes is not None
    ]


def groups(cells: Iterable[Cell]) -> list[tuple[str, int | None]]:
    """Dtypes and numbers of threads that there are, in their order."""
    return list(dict.fromkeys((cell.dtype, cell.threads) for cell in cells))


def _entry(cell: Cell, name: str) -> Entry | None:
    return next((e for e in cell.entries if e.name == name and e.kind == PEER), None)

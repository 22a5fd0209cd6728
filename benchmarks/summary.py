"""What a run amounts to: means of ratios, the worst cells, and which marks are met."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.cases import BOTH, PASSES, STACK
from benchmarks.records import Cell, Run

# Our time in multiples of the floor, at most.
FLOOR_MARKS = {"fp32": 1.25, "bf16": 1.6}
# The stack against the paper's equations in eager mode: times faster at least, share of its memory at most.
STACK_SPEED, STACK_MEMORY = 3.0, 0.4


class Mark(NamedTuple):
    """A goal, and whether it is met; ``met`` is None where nothing was measured for it."""

    text: str
    met: bool | None
    detail: str


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios; NaN of nothing.

    Example:
        >>> geometric_mean([1.0, 4.0])
        2.0
    """
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def describe(cell: Cell) -> str:
    """A cell's name."""
    return f"{cell.op} {cell.shape.label} {cell.dtype} {cell.layout} {cell.which}, {cell.threads} thr."


def ratios(cells: Iterable[Cell], which: str | None = None) -> list[float]:
    """The best peer's time over ours, of single ops."""
    found = (cell.best_ratio for cell in cells if cell.op != STACK and which in (None, cell.which))
    return [ratio for ratio in found if ratio is not None]


def means(run: Run) -> Iterator[tuple[str, int | None, str, float, int]]:
    """Dtype, threads, pass, geometric mean of the best peer's time over ours, and of how many cells."""
    pairs = sorted({(cell.dtype, cell.threads) for cell in run.cells}, key=str)
    for dtype, threads in pairs:
        part = [cell for cell in run.cells if (cell.dtype, cell.threads) == (dtype, threads)]
        for which in PASSES:
            found = ratios(part, which)
            if found:
                yield dtype, threads, which, geometric_mean(found), len(found)
    for which in PASSES:
        found = ratios(run.cells, which)
        if found:
            yield "all", None, which, geometric_mean(found), len(found)


def over_floor(run: Run) -> list[Cell]:
    """Cells that miss their dtype's mark, the worst first."""
    late = [cell for cell in run.cells if (cell.over_floor or 0.0) > FLOOR_MARKS.get(cell.dtype, math.inf)]
    return sorted(late, key=lambda cell: -(cell.over_floor or 0.0))


def worst(run: Run, count: int = 5) -> list[Cell]:
    """The cells where the best peer comes nearest to us or passes us."""
    known = [cell for cell in run.cells if cell.best_ratio is not None and cell.op != STACK]
    return sorted(known, key=lambda cell: cell.best_ratio or 0.0)[:count]


def not_ok(run: Run) -> list[tuple[Cell, str, str, str]]:
    """Cell, name, status and reason of all who have no figure."""
    return [
        (cell, entry.name, entry.status, entry.reason or "")
        for cell in run.cells
        for entry in cell.entries
        if entry.status != "ok"
    ]


def ours_without_figure(run: Run) -> list[Cell]:
    """Cells in which ours was wrong or failed."""
    return [cell for cell in run.cells if cell.ours is None or not cell.ours.timed]


def stack_figures(cell: Cell) -> tuple[float, float] | None:
    """How many times faster than the paper's equations in eager mode, and the share of their extra memory."""
    eager = next((entry for entry in cell.entries if entry.name == "eager" and entry.timed), None)
    ours = cell.ours
    if cell.op != STACK or eager is None or ours is None or not ours.timed:
        return None
    return eager.median / ours.median, (ours.extra_bytes or 0) / max(eager.extra_bytes or 0, 1)


def marks(run: Run) -> list[Mark]:
    """Every goal, met or not."""
    found = []
    for dtype, limit in FLOOR_MARKS.items():
        known = [cell for cell in run.cells if cell.dtype == dtype and cell.over_floor is not None]
        late = sum((cell.over_floor or 0.0) > limit for cell in known)
        text = f"{dtype}: every cell within {limit} floors"
        found.append(Mark(text, late == 0 if known else None, f"{late} of {len(known)} cells miss it"))
    found_ratios = ratios(run.cells)
    slower = sum(ratio < 1 for ratio in found_ratios)
    text = "no cell slower than its best peer"
    detail = f"{slower} of {len(found_ratios)} cells are"
    found.append(Mark(text, slower == 0 if found_ratios else None, detail))
    figures = [stack_figures(cell) for cell in run.cells if cell.which == BOTH]
    known_figures = [pair for pair in figures if pair is not None]
    met = all(speed >= STACK_SPEED and share <= STACK_MEMORY for speed, share in known_figures)
    text = f"stack {BOTH}: {STACK_SPEED:g} times faster than eager in {STACK_MEMORY:.0%} of its extra memory"
    spread = ", ".join(f"{speed:.2f}x in {share:.0%}" for speed, share in known_figures)
    found.append(Mark(text, met if known_figures else None, spread))
    return found

"""What a run amounts to: means of ratios, the worst cells, and which marks are met."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.cases import BOTH, FORWARD, PASSES, STACK
from benchmarks.records import Cell, Run

# Our time in multiples of the floor, at most.
FLOOR_MARKS = {"fp32": 1.25, "bf16": 1.6}
# On a GPU: the floor in multiples of our time at least, by pass; of dtypes and numbers of tokens at most in
# which memory alone should be the limit.
GPU_GOALS = {FORWARD: 0.90, BOTH: 0.85}
GPU_GOAL_DTYPES, GPU_GOAL_TOKENS = ("bf16", "fp16"), 32
# The stack against the paper's equations in eager mode: times faster at least, share of its memory at most.
STACK_SPEED, STACK_MEMORY = 3.0, 0.4


class Mark(NamedTuple):
    """A goal, and whether it is met; ``met`` is None where nothing was measured for it."""

    text: str
    met: bool | None
    detail: str

    @property
    def word(self) -> str:
        """What became of it."""
        return {True: "met", False: "NOT met", None: "not measured"}[self.met]


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
    threads = "" if cell.threads is None else f", {cell.threads} thr."
    op = f"{cell.op} {cell.shape.label}"
    if cell.parts is not None:
        op += f" of {cell.parts}" if cell.op == STACK else f" in {cell.parts} chunks"
    return f"{op} {cell.dtype} {cell.layout} {cell.which}{threads}"


def where(dtype: str, threads: int | None) -> str:
    """Dtype and threads, of which a GPU has none.

    Example:
        >>> where("fp32", 2), where("fp32", None)
        ('fp32, 2 thread(s)', 'fp32')
    """
    return dtype if threads is None else f"{dtype}, {threads} thread(s)"


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
    """Cells that miss their dtype's mark, the worst first. On a GPU there are goals instead."""
    if run.on_gpu:
        return []
    late = [cell for cell in run.cells if (cell.over_floor or 0.0) > FLOOR_MARKS.get(cell.dtype, math.inf)]
    return sorted(late, key=lambda cell: -(cell.over_floor or 0.0))


class Goal(NamedTuple):
    """A goal for the floor in multiples of our time."""

    text: str
    least: float


def gpu_goals(run: Run) -> Iterator[tuple[Goal, list[Cell], list[Cell]]]:
    """On a GPU, each goal, the cells that meet it and those that do not, the worst last."""
    if not run.on_gpu:
        return
    for dtype in GPU_GOAL_DTYPES:
        for which, least in GPU_GOALS.items():
            known = [
                cell
                for cell in run.cells
                if (cell.dtype, cell.which) == (dtype, which)
                and cell.reached is not None
                and cell.shape.tokens <= GPU_GOAL_TOKENS
            ]
            known.sort(key=lambda cell: -(cell.reached or 0.0))
            met = [cell for cell in known if (cell.reached or 0.0) >= least]
            if known:
                text = f"{dtype} {which} with at most {GPU_GOAL_TOKENS} tokens"
                yield Goal(text, least), met, known[len(met) :]


def worst(run: Run, count: int = 5) -> list[Cell]:
    """The cells where the best peer comes nearest to us or passes us."""
    known = [cell for cell in run.cells if cell.best_ratio is not None and cell.op != STACK]
    return sorted(known, key=lambda cell: cell.best_ratio or 0.0)[:count]


def without_figure(run: Run) -> dict[tuple[str, str], list[str]]:
    """Everybody without a figure by name and status: in which cells, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in run.cells:
        for entry in cell.entries:
            if not entry.timed:
                why = entry.reason or entry.note or ""
                found.setdefault((entry.name, entry.status), []).append(f"{describe(cell)}: {why}")
    return found


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
    for goal, reach, below in gpu_goals(run):
        text = f"{goal.text}: floor / time at least {goal.least:.2f} in every cell"
        found.append(Mark(text, not below, f"{len(below)} of {len(reach) + len(below)} cells miss it"))
    for dtype, limit in () if run.on_gpu else FLOOR_MARKS.items():
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

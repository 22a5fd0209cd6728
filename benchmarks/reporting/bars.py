"""Bars of every peer: its time, and its memory."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.cases import OPS, PASSES, STACK
from benchmarks.records import OURS, Cell, Run
from benchmarks.report import peer_names
from benchmarks.reporting import style
from benchmarks.reporting.derived import BEST, Comparison, compare, extra_maps
from benchmarks.summary import STACK_MEMORY, STACK_SPEED, stack_figures, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEED_CAPTION = (
    "Time of each peer in multiples of ours: the bar is the geometric mean of all cells, the line the range "
    'from the least to the largest. Right of 1, the peer is slower. "best peer" is the fastest in each cell. '
    "In brackets: in how many cells the peer has a figure, where not in all that it takes part in."
)
MEMORY_CAPTION = (
    "Peak memory above inputs, results and gradients, in multiples of the map's bytes: the bar is the median "
    "of all cells, the line the range from the least to the largest."
)
STACK_CAPTION = (
    "A stack of modules against the paper's equations in eager mode, a point for each layout. Dashed: the "
    "mark, which is for forward+backward: at least that much faster, in at most that share of extra memory."
)
_SHADES = (0.45, 1.0)


@style.styled
def speeds(run: Run) -> Figure | None:
    """A panel for each dtype and pass; None where nobody can be compared."""
    cells = _op_cells(run)
    names = [BEST, *_plain_first(cells)]
    kept = [cell for cell in cells if cell.best_ratio is not None]
    if not kept:
        return None
    threads = list(dict.fromkeys(cell.threads for cell in cells))
    figure, panels, keys = _panels(cells, len(names) * len(threads))
    compared = {
        key: {
            (name, count): compare([c for c in cells if (c.dtype, c.which, c.threads) == (*key, count)], name)
            for name in names
            for count in threads
        }
        for key in keys
    }
    ratios = [r for group in compared.values() for found in group.values() for r in found.ratios]
    for panel, key in zip(panels, keys, strict=True):
        for row, name in enumerate(names):
            for index, count in enumerate(threads):
                at = row + (index - (len(threads) - 1) / 2) * 0.8 / len(threads)
                shade = _SHADES[-1] if len(threads) == 1 else _SHADES[index % len(_SHADES)]
                _speed(panel, compared[key][name, count], at, 0.72 / len(threads), shade)
        panel.axvline(1.0, color=style.INK, linewidth=1.2)
        panel.set_xscale("log")
        panel.set_xlim(min(0.9, *ratios) / 1.05, max(ratios) * 1.9)
        style.plain_ticks(panel.xaxis)
        panel.set_title(", ".join(key))
        _rows(panel, names)
    _below(panels, "peer's time / our time")
    if threads != [None]:
        figure.legend(handles=_thread_handles(threads), loc="outside upper right", ncols=len(threads))
    return figure


@style.styled
def memory(run: Run) -> Figure | None:
    """A panel for each dtype and pass; None where nothing is known."""
    cells = _op_cells(run)
    names = [OURS, *_plain_first(cells)]
    cells = [cell for cell in cells if extra_maps([cell], OURS)]
    if not cells:
        return None
    figure, panels, keys = _panels(cells, len(names))
    most = max(value for name in names for value in extra_maps(cells, name))
    for panel, key in zip(panels, keys, strict=True):
        part = [cell for cell in cells if (cell.dtype, cell.which) == key]
        for row, name in enumerate(names):
            values = extra_maps(part, name)
            if not values:
                panel.text(0.0, row, " no figure", va="center", color=style.SOFT)
                continue
            middle = statistics.median(values)
            panel.barh(row, middle, 0.7, color=style.OURS if name == OURS else style.SOFT)
            panel.plot([min(values), max(values)], [row, row], color=style.INK, linewidth=1.2)
            panel.annotate(
                f"{middle:.2f}",
                (max(values), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        panel.set_xlim(0, most * 1.15)
        panel.set_title(", ".join(key))
        _rows(panel, names)
    _below(panels, "extra memory / map")
    return figure


@style.styled
def stacks(run: Run) -> Figure | None:
    """Speed and memory of the stack against eager mode; None where it was not measured."""
    found: dict[tuple[str, int | None, str], list[tuple[float, float]]] = {}
    for cell in run.cells:
        pair = stack_figures(cell)
        if cell.op == STACK and pair is not None:
            found.setdefault((cell.dtype, cell.threads, cell.which), []).append(pair)
    if not found:
        return None
    labels = [f"{where(dtype, threads)}, {which}" for dtype, threads, which in found]
    figure, [[left, right]] = style.grid(1, 2, 10.2, 0.28 * len(labels) + 1.1)
    for panel, part, mark in ((left, 0, STACK_SPEED), (right, 1, STACK_MEMORY)):
        for row, pairs in enumerate(found.values()):
            values = [pair[part] for pair in pairs]
            panel.plot(values, [row] * len(values), "o", color=style.OURS, markersize=6)
            panel.plot([0, max(values)], [row, row], color=style.OURS, linewidth=2, alpha=0.4)
        panel.axvline(mark, color=style.MISSED, linestyle="--", linewidth=1.2)
        panel.set_xlim(left=0)
        _rows(panel, labels)
    left.set_xlabel("eager time / our time")
    right.set_xlabel("our extra memory / eager's")
    right.set_yticklabels([])
    return figure


def _plain_first(cells: list[Cell]) -> list[str]:
    """All peers, those that are compiled behind the others."""
    return sorted(peer_names(cells), key=lambda name: name.startswith("compile "))


def _op_cells(run: Run) -> list[Cell]:
    return [cell for cell in run.cells if cell.op in OPS]


def _panels(cells: list[Cell], rows: int) -> tuple[Figure, list[Axes], list[tuple[str, str]]]:
    """Panels for dtypes (downwards) and passes (across), and what each is of."""
    dtypes = list(dict.fromkeys(cell.dtype for cell in cells))
    passes = [which for which in PASSES if any(cell.which == which for cell in cells)]
    figure, panels = style.grid(
        len(dtypes), len(passes), 1.4 + 4.4 * len(passes), (0.17 * rows + 0.75) * len(dtypes) + 0.5
    )
    return figure, [p for row in panels for p in row], [(d, which) for d in dtypes for which in passes]


def _speed(panel: Axes, found: Comparison, at: float, height: float, shade: float) -> None:
    without = sum(found.without.values())
    if not found.ratios:
        # Named as well where it has no figure at all.
        why = ", ".join(f"{status} in {count}" for status, count in found.without.items())
        panel.text(1.0, at, f"  ✕ {why or 'takes no part'}", va="center", fontsize=7.5, color=style.MISSED)
        return
    colour = style.BEST if found.name == BEST else style.OURS
    panel.barh(at, found.mean - 1.0, height, left=1.0, color=colour, alpha=shade)
    panel.plot([min(found.ratios), max(found.ratios)], [at, at], color=style.INK, linewidth=1.0)
    share = f" ({len(found.ratios)} of {len(found.ratios) + without})" if without else ""
    panel.annotate(
        f"{found.mean:.2f}{share}",
        (max(found.mean, 1.0, *found.ratios), at),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
    )


def _rows(panel: Axes, names: list[str]) -> None:
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", alpha=0.6)


def _below(panels: list[Axes], text: str) -> None:
    """A label below the lowest panels, and names beside the leftmost ones only."""
    for panel in panels:
        place = panel.get_subplotspec()
        if place is not None and place.is_last_row():
            panel.set_xlabel(text)
        if place is not None and not place.is_first_col():
            panel.set_yticklabels([])


def _thread_handles(threads: list[int | None]) -> list[object]:
    from matplotlib.patches import Patch

    return [
        Patch(color=style.OURS, alpha=_SHADES[index % len(_SHADES)], label=f"{count} thread(s)")
        for index, count in enumerate(threads)
    ]

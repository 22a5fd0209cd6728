"""The report of what calls cost where there is next to nothing to compute, and of first calls."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.cases import FORWARD, PASSES, STACK
from benchmarks.overhead import MODE
from benchmarks.records import Cell, Run
from benchmarks.report import head
from benchmarks.reporting import environment, style, tables
from benchmarks.reporting.blocks import Block, Heading, Item, Number, Paragraph, Picture, Table, number
from benchmarks.timing import quantiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Microseconds of one call, a row for each op and shape: points are medians, lines the 20 % and 80 % "
    "quantiles. To the left is better."
)


def is_overhead(run: Run) -> bool:
    """Whether a run is of this kind."""
    return run.settings.get("mode") == MODE


def blocks(name: str, run: Run) -> Iterator[Block]:
    """All of one file, under its name."""
    yield Heading(f"{name}: what a call costs", 2)
    yield from (Paragraph(line) for line in head(run).splitlines())
    figure = draw(run)
    if figure is not None:
        yield Picture(f"{name}-calls", figure, "Points: microseconds per call of everybody", CAPTION)
    yield calls(run)
    yield from first_calls(run)
    yield tables.entries(run)
    yield from tables.missing(run)
    yield from environment.section(run)


def calls(run: Run) -> Table:
    """Microseconds of every call."""
    names = _names(run)
    rows = []
    for cell in run.cells:
        entries = {entry.name: entry for entry in cell.entries}
        row: list[Item] = [_label(cell), cell.which]
        for name in names:
            entry = entries.get(name)
            timed = entry is not None and entry.timed
            missing = Number("" if entry is None else entry.status, None)
            row.append(number(entry.median, ".1f", 1e-6) if entry is not None and timed else missing)
        rows.append(row)
    return Table(["us per call", "pass", *names], rows)


def first_calls(run: Run) -> Iterator[Block]:
    """What a fresh process waits for, where that was measured."""
    if not run.first_calls:
        return
    yield Heading("First calls")
    titles = ["ms, medians of fresh processes", "op", "BxNxCxL", "dtype", "compilers' caches"]
    titles += ["import torch", "import vt_fast", "first call", "second call", "note"]
    rows: list[list[Item]] = []
    for each in run.first_calls:
        row: list[Item] = [each.name, each.op, each.shape.label, each.dtype, "cold" if each.cold else "warm"]
        for seconds in (each.import_torch, each.import_vt_fast, each.first, each.second):
            row.append(number(statistics.median(seconds) if seconds else None, ".3g", 1e-3))
        rows.append([*row, each.reason or ""])
    yield Table(titles, rows)


@style.styled
def draw(run: Run) -> Figure | None:
    """A panel for each pass; None where nobody has a figure."""
    cells = [cell for cell in run.cells if any(entry.timed for entry in cell.entries)]
    passes = [which for which in PASSES if any(cell.which == which for cell in cells)]
    if not cells:
        return None
    names = _names(run)
    rows = list(dict.fromkeys(map(_label, cells)))
    figure, [panels] = style.grid(1, len(passes), 1.8 + 4.2 * len(passes), 0.34 * len(rows) + 1.4)
    for panel, which in zip(panels, passes, strict=True):
        for cell in (cell for cell in cells if cell.which == which):
            for position, name in enumerate(names):
                entry = next((each for each in cell.entries if each.name == name and each.timed), None)
                if entry is None:
                    continue
                median, low, high = (1e6 * value for value in quantiles(entry.seconds))
                at = rows.index(_label(cell)) + 0.5 * (position / max(len(names) - 1, 1) - 0.5)
                colour = style.colour(name, position)
                panel.plot([low, high], [at, at], color=colour, linewidth=1.5, alpha=0.5)
                panel.plot(median, at, _marker(name), color=colour, markersize=5)
        panel.set_xscale("log")
        style.plain_ticks(panel.xaxis)
        panel.set_yticks(range(len(rows)), rows if panel is panels[0] else [""] * len(rows))
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", alpha=0.6)
        panel.set_title("without gradients" if which == FORWARD else "with gradients")
        panel.set_xlabel("us per call")
    figure.legend(handles=_handles(names), loc="outside upper center", ncols=min(7, len(names)))
    return figure


def _names(run: Run) -> list[str]:
    return list(dict.fromkeys(entry.name for cell in run.cells for entry in cell.entries))


def _label(cell: Cell) -> str:
    return f"{'stack of 1' if cell.op == STACK else cell.op} {cell.shape.label}"


def _marker(name: str) -> str:
    return "s" if name.startswith("compile ") else "o"


def _handles(names: list[str]) -> list[object]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=style.colour(name, position), marker=_marker(name), linestyle="", label=name)
        for position, name in enumerate(names)
    ]

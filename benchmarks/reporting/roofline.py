"""What each cell reaches, under the two ceilings that were measured around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.cases import FORWARD, OPS
from benchmarks.records import Cell, Floor, Run
from benchmarks.reporting import style
from benchmarks.reporting.derived import achieved, groups
from benchmarks.summary import where
from benchmarks.timing import quantiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Each point is a cell: the compulsory bytes and the FLOPs of its op over our median time. Grey: over the "
    "best peer's. Lines: the median ceilings of the run, copy_ and torch.mm, shaded from their 20 % to their "
    "80 % quantile. They are ceilings of PyTorch: with a map in a cache, or a kernel faster than torch.mm, a "
    "cell lies above them."
)
_COLOURS = dict(zip(OPS, style.SERIES, strict=False))


@style.styled
def draw(run: Run) -> Figure | None:
    """A panel for each dtype and number of threads; None where no cell has a floor and a time of ours."""
    cells = [cell for cell in run.cells if achieved(cell, cell.ours) is not None]
    if not cells:
        return None
    found = groups(cells)
    columns = min(len(found), 2)
    rows = -(-len(found) // columns)
    figure, panels = style.grid(rows, columns, 4.9 * columns + 0.4, 3.4 * rows + 0.7)
    flat = [panel for row in panels for panel in row]
    for panel, (dtype, threads) in zip(flat, found, strict=False):
        _panel(panel, [cell for cell in cells if (cell.dtype, cell.threads) == (dtype, threads)])
        panel.set_title(where(dtype, threads))
    for panel in flat[len(found) :]:
        panel.set_visible(False)
    figure.legend(handles=_handles(cells), loc="outside upper center", ncols=4)
    return figure


def _panel(panel: Axes, cells: list[Cell]) -> None:
    floors = [cell.floor for cell in cells if cell.floor is not None]
    intensities = []
    for cell in cells:
        for entry in (cell.best_peer, cell.ours):
            point = achieved(cell, entry)
            if point is None:
                continue
            intensities.append(point.intensity)
            if entry is not cell.ours:
                panel.plot(point.intensity, point.flop_rate, ".", color=style.SOFT, markersize=4, zorder=2)
                continue
            colour = _COLOURS[cell.op]
            panel.plot(
                point.intensity,
                point.flop_rate,
                "o" if cell.which == FORWARD else "D",
                color=colour,
                markerfacecolor=colour if cell.layout == "channels_last" else "none",
                markersize=5,
                zorder=3,
            )
    _ceilings(panel, floors, min(intensities), max(intensities))
    panel.set_xscale("log")
    panel.set_yscale("log")
    style.plain_ticks(panel.xaxis)
    style.plain_ticks(panel.yaxis, 1e9)
    panel.set_xlabel("FLOPs per compulsory byte")
    panel.set_ylabel("GFLOP/s")
    panel.grid(alpha=0.6)


def _ceilings(panel: Axes, floors: list[Floor], least: float, most: float) -> None:
    bandwidth = quantiles([floor.bandwidth for floor in floors])
    rate = quantiles([floor.matrix_rate for floor in floors])
    ridge = rate.median / bandwidth.median
    left, right = min(least, ridge) / 3, max(most, ridge) * 2.5
    # Dense, as each of the three bends elsewhere.
    xs = [left * (right / left) ** (step / 200) for step in range(201)]
    panel.plot(
        xs, [min(x * bandwidth.median, rate.median) for x in xs], color=style.INK, linewidth=1.4, zorder=1
    )
    panel.fill_between(
        xs,
        [min(x * bandwidth.low, rate.low) for x in xs],
        [min(x * bandwidth.high, rate.high) for x in xs],
        color=style.INK,
        alpha=0.12,
        linewidth=0,
        zorder=1,
    )
    panel.annotate(
        f"torch.mm {rate.median / 1e9:.0f} GFLOP/s",
        (right, rate.median),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
    )
    panel.annotate(
        f"copy_ {bandwidth.median / 1e9:.1f} GB/s",
        (left, left * bandwidth.median),
        xytext=(12, 0),
        textcoords="offset points",
        ha="left",
        va="center",
    )


def _handles(cells: list[Cell]) -> list[object]:
    from matplotlib.lines import Line2D

    def marker(label: str, form: str, colour: str, filled: bool = True) -> Line2D:
        face = colour if filled else "none"
        return Line2D([], [], marker=form, color=colour, markerfacecolor=face, linestyle="", label=label)

    present = {cell.op for cell in cells}
    handles = [marker(op, "s", _COLOURS[op]) for op in OPS if op in present]
    handles.append(marker("best peer", ".", style.SOFT))
    for which in dict.fromkeys(cell.which for cell in cells):
        handles.append(marker(which, "o" if which == FORWARD else "D", style.INK))
    for layout in dict.fromkeys(cell.layout for cell in cells):
        filled = layout == "channels_last"
        handles.append(marker(f"{'full' if filled else 'hollow'}: {layout}", "o", style.INK, filled))
    return list(handles)

"""Curves of times or bytes against a size, with a mark where somebody falls over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "The line is the median, shaded from the 20 % to the 80 % quantile. A ✕ at the upper edge: no figure at "
    "this size, for the reason beside it."
)


class Point(NamedTuple):
    """A value with the ends of its spread, or the reason why there is none."""

    value: float | None
    reason: str | None = None
    low: float | None = None
    high: float | None = None


class Curves(NamedTuple):
    """One panel: a point of each name for each x."""

    title: str
    x_label: str
    y_label: str
    xs: Sequence[float]
    series: Mapping[str, Sequence[Point]]


@style.styled
def draw(panels: Sequence[Curves]) -> Figure | None:
    """All panels, two beside each other, both axes logarithmic; None where there is no panel.

    Raises:
        ValueError: a series has not one point for each x, or one with neither a value nor a reason.
    """
    for curves in panels:
        for name, points in curves.series.items():
            if len(points) != len(curves.xs):
                raise ValueError(f'"{name}" must have {len(curves.xs)} points, got {len(points)}')
            if any(point.value is None and not point.reason for point in points):
                raise ValueError(f'"{name}" must have a reason for each point without a value')
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = style.grid(rows, columns, 5.2 * columns, 3.6 * rows + 0.4)
    flat = [panel for row in axes for panel in row]
    names = list(dict.fromkeys(name for curves in panels for name in curves.series))
    colours = {name: style.colour(name, position) for position, name in enumerate(names)}
    for panel, curves in zip(flat, panels, strict=False):
        _panel(panel, curves, colours)
    for panel in flat[len(panels) :]:
        panel.set_visible(False)
    figure.legend(handles=_handles(colours), loc="outside upper center", ncols=min(5, len(names)))
    return figure


def _panel(panel: Axes, curves: Curves, colours: Mapping[str, str]) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    fallen = 0
    for name, points in curves.series.items():
        known = [(x, point) for x, point in zip(curves.xs, points, strict=True) if point.value is not None]
        xs = [x for x, _ in known]
        values = [point.value for _, point in known if point.value is not None]
        dashed = "--" if name.startswith("compile ") else "-"
        panel.plot(xs, values, dashed, marker="o", markersize=3.5, linewidth=1.5, color=colours[name])
        if any(point.low is not None for _, point in known):
            lows = [v if p.low is None else p.low for v, (_, p) in zip(values, known, strict=True)]
            highs = [v if p.high is None else p.high for v, (_, p) in zip(values, known, strict=True)]
            panel.fill_between(xs, lows, highs, color=colours[name], alpha=0.2, linewidth=0)
        fallen += _fallen(panel, curves.xs, points, colours[name], fallen)
    panel.set_title(curves.title)
    panel.set_xlabel(curves.x_label)
    panel.set_ylabel(curves.y_label)
    panel.set_xticks(curves.xs, [f"{x:g}" if x < 1e5 else f"{x:.0f}" for x in curves.xs])
    panel.set_xticks([], minor=True)
    if max(curves.xs) >= 1e4:
        panel.tick_params(axis="x", labelrotation=30)
    panel.grid(alpha=0.6)
    # Room for the marks above all curves.
    low, high = panel.get_ylim()
    panel.set_ylim(low, high * (high / low) ** (0.09 * fallen + 0.02))
    style.plain_ticks(panel.yaxis)


def _fallen(panel: Axes, xs: Sequence[float], points: Sequence[Point], colour: str, row: int) -> int:
    """Mark where a series has no value, each series on a line of its own; returns how many lines it took."""
    missing = [(x, point.reason) for x, point in zip(xs, points, strict=True) if point.value is None]
    if not missing:
        return 0
    height = 0.97 - 0.075 * row
    where = panel.get_xaxis_transform()  # x as in the data, y in heights of the panel
    panel.plot(
        [x for x, _ in missing],
        [height] * len(missing),
        "x",
        color=colour,
        transform=where,
        markersize=6,
        markeredgewidth=1.8,
        clip_on=False,
    )
    first, last = missing[0][0], missing[-1][0]
    all_over = first == xs[0] and last == xs[-1]
    before = first != xs[0]
    reasons = list(dict.fromkeys(reason or "" for _, reason in missing))
    panel.annotate(
        "; ".join([*reasons[:2], *(["..."] if len(reasons) > 2 else [])]),
        (first if before or all_over else last, height),
        xycoords=where,
        # Beside the marks where there is room, else below them.
        xytext=(0, -9) if all_over else (-7 if before else 7, 0),
        textcoords="offset points",
        ha="right" if before else "left",
        va="center",
        fontsize=7.5,
        color=colour,
    )
    return 2 if all_over else 1


def _handles(colours: Mapping[str, str]) -> list[object]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linestyle="--" if name.startswith("compile ") else "-", label=name)
        for name, colour in colours.items()
    ]

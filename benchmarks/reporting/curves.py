"""Curves of times or bytes against a size, with a mark where somebody falls over."""

from __future__ import annotations

import re
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


# How far apart crosses are in a line, in points.
_CROSS = 8
_NEEDS = re.compile(r"needs ([\d.e+]+) GB")


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
    fallen = _fallen(panel, curves, colours)
    panel.set_title(curves.title)
    panel.set_xlabel(curves.x_label)
    panel.set_ylabel(curves.y_label)
    panel.set_xticks(curves.xs, [f"{x:g}" if x < 1e5 else f"{x:.0f}" for x in curves.xs])
    panel.set_xticks([], minor=True)
    # The ends too, where nobody may have a value.
    margin = (max(curves.xs) / min(curves.xs)) ** 0.04
    panel.set_xlim(min(curves.xs) / margin, max(curves.xs) * margin)
    if max(curves.xs) >= 1e4:
        panel.tick_params(axis="x", labelrotation=30)
    panel.grid(alpha=0.6)
    # Room for the marks above all curves.
    low, high = panel.get_ylim()
    panel.set_ylim(low, high * (high / low) ** (0.09 * fallen + 0.02))
    style.plain_ticks(panel.yaxis)


def _fallen(panel: Axes, curves: Curves, colours: Mapping[str, str]) -> int:
    """Mark where series have no value, below each other; returns how many lines that took.

    Those that have none at the same places share a line, their crosses beside each other.
    """
    alike: dict[tuple[float, ...], list[str]] = {}
    for name, points in curves.series.items():
        missing = tuple(x for x, point in zip(curves.xs, points, strict=True) if point.value is None)
        if missing:
            alike.setdefault(missing, []).append(name)
    row = 0
    for missing, names in alike.items():
        reasons = [point.reason for name in names for point in curves.series[name] if point.value is None]
        row += _line_of_crosses(
            panel, curves.xs, missing, [colours[name] for name in names], _together(reasons), row
        )
    return row


def _line_of_crosses(
    panel: Axes, xs: Sequence[float], missing: Sequence[float], colours: Sequence[str], text: str, row: int
) -> int:
    """One line of marks with its text; returns how many lines high it is."""
    from matplotlib.transforms import ScaledTranslation

    height = 0.97 - 0.075 * row
    where = panel.get_xaxis_transform()  # x as in the data, y in heights of the panel
    first, last = missing[0], missing[-1]
    all_over = first == xs[0] and last == xs[-1]
    before = first != xs[0]
    # Away from where the text is not: there may be no room.
    step = -_CROSS if before or all_over else _CROSS
    scale = panel.figure.get_figure(root=True).dpi_scale_trans
    for index, colour in enumerate(colours):
        panel.plot(
            missing,
            [height] * len(missing),
            "x",
            color=colour,
            transform=where + ScaledTranslation(index * step / 72, 0, scale),
            markersize=6,
            markeredgewidth=1.8,
            clip_on=False,
        )
    beside = (len(colours) - 1) * step + (-7 if before else 7)
    panel.annotate(
        text,
        (first if before or all_over else last, height),
        xycoords=where,
        # Beside the marks where there is room, else below them.
        xytext=(0, -9) if all_over else (beside, 0),
        textcoords="offset points",
        ha="right" if before else "left",
        va="center",
        fontsize=7.5,
        color=colours[0] if len(colours) == 1 else style.INK,
    )
    return 2 if all_over else 1


def _together(reasons: Sequence[str | None]) -> str:
    """Reasons in few words.

    Example:
        >>> _together(["needs 16.3 GB", "wrong", "needs 20.9 GB", "needs 18 GB"])
        'needs 16.3 to 20.9 GB; wrong'
        >>> _together(["failed", "failed"])
        'failed'
    """
    known = list(dict.fromkeys(reason or "" for reason in reasons))
    sizes = [float(size.group(1)) for reason in known if (size := _NEEDS.fullmatch(reason))]
    rest = [reason for reason in known if not _NEEDS.fullmatch(reason)]
    if sizes:
        least, most = min(sizes), max(sizes)
        rest.insert(0, f"needs {least:g} GB" if least == most else f"needs {least:g} to {most:g} GB")
    return "; ".join([*rest[:2], *(["..."] if len(rest) > 2 else [])])


def _handles(colours: Mapping[str, str]) -> list[object]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linestyle="--" if name.startswith("compile ") else "-", label=name)
        for name, colour in colours.items()
    ]

"""Bars of networks and their parts: images per second, and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.networks.records import NetworkCell, Side
from benchmarks.networks.sides import CONVOLUTIONAL, FUSED
from benchmarks.reporting import style
from benchmarks.timing import quantiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATE_CAPTION = (
    "Images per second at the median time of a step; the line is from the 20 % to the 80 % quantile of the "
    "times. In brackets: in multiples of the convolutions' rate."
)
MEMORY_CAPTION = (
    "Peak memory of a step above parameters and inputs. In brackets: in multiples of the convolutions'."
)
_COLOURS = {CONVOLUTIONAL: style.SOFT, FUSED: style.OURS}
_OTHERS = (style.BEST, "#3a9d5d", "#8f6bd1")


class Bar(NamedTuple):
    """How long a bar is, and the ends of its line."""

    value: float
    low: float
    high: float


def rate(cell: NetworkCell, side: Side) -> Bar | None:
    """Images per second, or None without a time."""
    if not side.seconds:
        return None
    times = quantiles(side.seconds)
    return Bar(cell.batch / times.median, cell.batch / times.high, cell.batch / times.low)


def megabytes(cell: NetworkCell, side: Side) -> Bar | None:
    """Peak memory, or None where it was not measured."""
    if side.peak_bytes is None:
        return None
    return Bar(*(side.peak_bytes / 1e6,) * 3)


@style.styled
def draw(
    cells: list[NetworkCell], label: str, value: Callable[[NetworkCell, Side], Bar | None]
) -> Figure | None:
    """A row of panels for each kind of network, a column for each pass; None where nothing has a figure."""
    cells = [cell for cell in cells if any(value(cell, side) for side in cell.sides)]
    if not cells:
        return None
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    passes = list(dict.fromkeys(cell.which for cell in cells))
    sides = list(dict.fromkeys(side.name for cell in cells for side in cell.sides))
    names = {kind: list(dict.fromkeys(_name(c, cells) for c in cells if c.kind == kind)) for kind in kinds}
    heights = [0.16 * (len(sides) + 0.8) * len(names[kind]) + 0.5 for kind in kinds]
    figure, panels = style.grid(len(kinds), len(passes), 2.2 + 4.0 * len(passes), sum(heights) + 0.4, heights)
    for kind, row in zip(kinds, panels, strict=True):
        for which, panel in zip(passes, row, strict=True):
            part = {_name(c, cells): c for c in cells if (c.kind, c.which) == (kind, which)}
            _panel(panel, part, names[kind], sides, value)
            panel.set_title(f"{kind}, {which}: {label}")
            if panel is not row[0]:
                panel.set_yticklabels([])
    figure.legend(handles=_handles(sides), loc="outside upper center", ncols=len(sides))
    return figure


def _panel(
    panel: Axes,
    part: dict[str, NetworkCell],
    names: list[str],
    sides: list[str],
    value: Callable[[NetworkCell, Side], Bar | None],
) -> None:
    pitch = len(sides) + 0.8
    longest = 0.0
    for index, name in enumerate(names):
        cell = part.get(name)
        if cell is None:
            continue
        by_name = {side.name: side for side in cell.sides}
        base = value(cell, by_name[CONVOLUTIONAL]) if CONVOLUTIONAL in by_name else None
        for position, side_name in enumerate(sides):
            at = index * pitch + position
            side = by_name.get(side_name)
            bar = None if side is None else value(cell, side)
            if side is None or bar is None:
                why = "takes no part" if side is None else side.reason or "no figure"
                panel.text(0.0, at, f" ✕ {why[:40]}", va="center", fontsize=7, color=style.MISSED)
                continue
            longest = max(longest, bar.high)
            panel.barh(at, bar.value, 0.85, color=_colour(side_name, sides))
            if bar.high > bar.low:
                panel.plot([bar.low, bar.high], [at, at], color=style.INK, linewidth=1.0)
            share = "" if base is None or side_name == CONVOLUTIONAL else f" ({bar.value / base.value:.2f})"
            panel.annotate(
                f"{bar.value:.{_digits(bar.value)}f}{share}",
                (bar.high, at),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    panel.set_yticks([i * pitch + (len(sides) - 1) / 2 for i in range(len(names))], names)
    panel.set_ylim((len(names) - 1) * pitch + len(sides) - 0.3, -0.7)
    panel.set_xlim(0, (longest or 1.0) * 1.25)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", alpha=0.6)


def _digits(value: float) -> int:
    """Decimals that make three digits of a number from 0.1 on."""
    return 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0


def _name(cell: NetworkCell, cells: list[NetworkCell]) -> str:
    """A cell's name, with dtype, layout and threads where the cells differ in them."""
    found = [cell.name.replace(", ", ",\n")]
    for attribute in ("dtype", "layout", "threads"):
        if len({getattr(other, attribute) for other in cells}) > 1:
            found.append(f"{getattr(cell, attribute)}{' thread(s)' if attribute == 'threads' else ''}")
    return ",\n".join(found)


def _colour(name: str, sides: list[str]) -> str:
    others = [side for side in sides if side not in _COLOURS]
    return _COLOURS[name] if name in _COLOURS else _OTHERS[others.index(name) % len(_OTHERS)]


def _handles(sides: list[str]) -> list[object]:
    from matplotlib.patches import Patch

    return [Patch(color=_colour(name, sides), label=name) for name in sides]

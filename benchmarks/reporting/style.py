"""One look for all drawings, in a page that may be light or dark and in PNGs that are light."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_T = TypeVar("_T")

# In a page these two become the page's own colours; nothing else may have them.
_INK, _LINE = "#1b1f25", "#d5dae1"
INK = _INK
# These are seen on white and on black.
OURS, BEST, SOFT, MISSED = "#2f81d6", "#d9822b", "#8a94a0", "#d6453a"
_COLOURS = {
    "eager": "#c8553d",
    "folded": "#3a9d5d",
    "transposed": "#8f6bd1",
    "sdpa": "#c99a1a",
    "sdpa flash": "#e0719d",
    "sdpa math": "#7d7f86",
    "sdpa efficient": "#a3705a",
    "sdpa cudnn": "#5f6bb5",
    "eager in chunks": "#e39a7f",
    "flex": "#7a8f2d",
    "best peer": BEST,
}
# Our other backends; and who is not named above.
_BACKEND = "#2aa5a0"
_OTHERS = ("#b5569b", "#5b7fa8", "#6f9e3f", "#9c8ad1")
SERIES = (OURS, BEST, "#3a9d5d", "#8f6bd1", _BACKEND, *_OTHERS)

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # an error message may have a $ in it
    "svg.fonttype": "none",  # letters stay letters: smaller, and they can be searched
}


def colour(name: str, position: int = 0) -> str:
    """A contender's colour: ours is blue, a compiled peer has that of the peer."""
    if name == "ours" or name.startswith("vt_fast"):
        return OURS if position == 0 else _BACKEND
    return _COLOURS.get(name.removeprefix("compile "), _OTHERS[position % len(_OTHERS)])


def styled(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function draw in this style. What it asks for at once would else have matplotlib's own."""

    @wraps(draw)
    def drawn(*given: _P.args, **named: _P.kwargs) -> _T:
        from matplotlib import rc_context

        with rc_context(_RC):
            return draw(*given, **named)

    return drawn


def grid(
    rows: int, columns: int, width: float, height: float, heights: Sequence[float] | None = None
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels, its size in inches; ``heights`` are those of its rows, in proportion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, [list(row) for row in panels]


def plain_ticks(axis: Any, unit: float = 1.0) -> None:
    """Ticks of a logarithmic axis as plain numbers, with some between powers of ten where there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    axis.set_minor_formatter(NullFormatter())


def svg(figure: Figure, name: str, alternative: str) -> str:
    """The drawing as an element of a page, which gives it its ink; its identifiers begin with its name."""
    from matplotlib import rc_context

    stream = io.StringIO()
    # The salt makes the names of its parts the same in each run, and other ones than another drawing's.
    with rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    label = f'<svg role="img" aria-label="{escape(alternative)}"'
    return text.replace("<svg", label, 1).strip()


def png(figure: Figure, path: Path) -> Path:
    """The drawing as a file, on white; returns the path."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC):
        figure.savefig(path, format="png", dpi=100, facecolor="white", metadata={"Software": None})
    return path

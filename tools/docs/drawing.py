"""Pictures in SVG, whose colours are variables of CSS.

So a picture in a page follows its scheme, and one on its own the system's.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from torch import Tensor

BLUE, ORANGE, GREEN, GREY = "#1f83c9", "#e0900b", "#2a9d6f", "#8a8f98"
_STYLE = (
    ":root{--vt-ink:#24292f;--vt-soft:#5c6570;--vt-line:#d0d7de}"
    "@media(prefers-color-scheme:dark){:root{--vt-ink:#e6edf3;--vt-soft:#9aa4af;--vt-line:#3d444d}}"
)


class Drawing:
    """An SVG picture, to which shapes are added. Coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title = (width, height), title
        self.shapes: list[str] = []

    def add(self, shape: str) -> None:
        """Add one element of SVG."""
        self.shapes.append(shape)

    def text(
        self, x: float, y: float, words: str, *, anchor: str = "start", soft: bool = False, size: int = 13
    ) -> None:
        """A line of text, whose baseline is at y."""
        colour = "soft" if soft else "ink"
        self.add(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="var(--vt-{colour})">{html.escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        words: str = "",
        *,
        soft: bool = False,
    ) -> None:
        """A filled rectangle with a word in its middle."""
        opacity = ' fill-opacity=".25"' if soft else ""
        self.add(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}"{opacity}/>'
        )
        if words:
            dark = sum(int(fill[at : at + 2], 16) for at in (1, 3, 5)) < 500
            colour = "var(--vt-ink)" if soft else "#fff" if dark else "#24292f"
            self.add(
                f'<text x="{x + width / 2:g}" y="{y + height / 2 + 4.5:g}" text-anchor="middle" '
                f'font-size="13" fill="{colour}">{html.escape(words)}</text>'
            )

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A horizontal or vertical arrow."""
        self.add(f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" stroke="var(--vt-soft)" stroke-width="1.5"/>')
        if to_y == y:
            back = -7 if to_x > x else 7
            points = f"{to_x:g} {to_y:g},{to_x + back:g} {to_y - 4:g},{to_x + back:g} {to_y + 4:g}"
        else:
            back = -7 if to_y > y else 7
            points = f"{to_x:g} {to_y:g},{to_x - 4:g} {to_y + back:g},{to_x + 4:g} {to_y + back:g}"
        self.add(f'<polygon points="{points}" fill="var(--vt-soft)"/>')

    def map(self, x: float, y: float, pixels: Tensor, cell: int) -> None:
        """A map (H, W, 3) in its colours, or (H, W) as the opacity of one colour."""
        made = []
        for row, line in enumerate(pixels.tolist()):
            for column, value in enumerate(line):
                place = f'd="M{column} {row}h1v1h-1z"'
                if isinstance(value, list):
                    made.append(f'<path fill="{hex_colour(value)}" {place}/>')
                else:
                    made.append(f'<path opacity="{value:.2f}" {place}/>')
        height, width = pixels.shape[:2]
        self.add(
            f'<g transform="translate({x:g} {y:g}) scale({cell})" fill="var(--vt-ink)" '
            f'shape-rendering="crispEdges">{"".join(made)}</g>'
            f'<rect x="{x:g}" y="{y:g}" width="{width * cell}" height="{height * cell}" fill="none" '
            'stroke="var(--vt-line)"/>'
        )

    def svg(self) -> str:
        """The picture as a file."""
        width, height = self.size
        title = html.escape(self.title)
        inside = "\n".join(self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'role="img" aria-label="{title}" font-family="system-ui, sans-serif">'
            f"<style>{_STYLE}</style>\n{inside}\n</svg>\n"
        )


def hex_colour(colour: Sequence[float]) -> str:
    """A colour of red, green and blue between 0 and 1."""
    return "#" + "".join(f"{round(255 * min(max(each, 0.0), 1.0)):02x}" for each in colour)

"""What a report is made of, whatever it is written as: headings, paragraphs, tables, marks and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.summary import Mark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.figures import AnyRun


class Heading(NamedTuple):
    """The title of a file's part of the report (level 2), or of a section of it (3)."""

    text: str
    level: int = 3


class Paragraph(NamedTuple):
    """Plain text."""

    text: str


class Number(NamedTuple):
    """A figure in a table: what is read, and the value that the column is sorted by."""

    text: str
    value: float | None


Item = str | Number


class Table(NamedTuple):
    """Rows under a head. A table is folded away behind its title where it is long and of little interest."""

    head: Sequence[str]
    rows: Sequence[Sequence[Item]]
    title: str = ""
    folded: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns have figures in them."""
        return [any(isinstance(row[column], Number) for row in self.rows) for column in range(len(self.head))]


class Tiles(NamedTuple):
    """The few figures that matter most: each a value and what it is of."""

    tiles: Sequence[tuple[str, str]]


class Marks(NamedTuple):
    """Goals, and whether they are met."""

    marks: Sequence[Mark]


class Picture(NamedTuple):
    """A drawing with its file's name (no suffix), a text for who cannot see it, and what it shows."""

    name: str
    figure: Figure
    alternative: str
    caption: str


class Drawing(NamedTuple):
    """How a report comes to a picture: its file's name behind that of the result, and what draws a run."""

    name: str
    draw: Callable[[Any], Figure | None]
    title: str
    alternative: str
    caption: str


Block = Heading | Paragraph | Table | Tiles | Marks | Picture


def drawn(name: str, run: AnyRun, drawings: Iterable[Drawing]) -> Iterator[Block]:
    """The pictures of a run that have anything to show, each under its title."""
    for drawing in drawings:
        figure = drawing.draw(run)
        if figure is not None:
            yield Heading(drawing.title)
            yield Picture(f"{name}-{drawing.name}", figure, drawing.alternative, drawing.caption)


def number(value: float | None, form: str = ".2f", unit: float = 1.0, suffix: str = "") -> Number:
    """A figure in multiples of a unit; a dash where there is none.

    Example:
        >>> number(0.0125, ".1f", 1e-3)
        Number(text='12.5', value=12.5)
        >>> number(None).text
        '-'
    """
    if value is None:
        return Number("-", None)
    return Number(f"{value / unit:{form}}{suffix}", value / unit)


def text_of(item: Item) -> str:
    """What is read in a cell of a table."""
    return item.text if isinstance(item, Number) else item

"""The report of a run in series: one size varies at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.records import Cell, Entry, Run
from benchmarks.report import head
from benchmarks.reporting import curves, environment, tables
from benchmarks.reporting.blocks import Block, Heading, Paragraph, Picture
from benchmarks.reporting.curves import Curves, Point
from benchmarks.summary import where
from benchmarks.timing import quantiles

_LABELS = {"N": "pixels N", "L": "tokens L", "C": "channels C", "B": "samples B"}


def is_series(run: Run) -> bool:
    """Whether a run has cells of series."""
    return any(cell.series for cell in run.cells)


def blocks(name: str, run: Run) -> Iterator[Block]:
    """All of one file, under its name."""
    yield Heading(f"{name}: one size at a time", 2)
    yield from (Paragraph(line) for line in head(run).splitlines())
    for series in dict.fromkeys(each for cell in run.cells for each in cell.series):
        label = _LABELS.get(series, series)
        yield Heading(f"Against {label}")
        for slug, y_label, value in (("time", "ms", milliseconds), ("memory", "extra MB", megabytes)):
            figure = curves.draw(panels(run, series, y_label, value))
            if figure is not None:
                alternative = f"Curves: {y_label} of everybody against {label}"
                yield Picture(f"{name}-{series}-{slug}", figure, alternative, curves.CAPTION)
    yield Heading("All cells")
    yield tables.cells(run)
    yield tables.entries(run)
    yield from tables.missing(run)
    yield from environment.section(run)


def panels(run: Run, series: str, y_label: str, value: Callable[[Entry], Point]) -> list[Curves]:
    """A panel for each op and pass in which a series has two values or more."""
    found = []
    mine = [cell for cell in run.cells if series in cell.series]
    for op, which in dict.fromkeys((cell.op, cell.which) for cell in mine):
        cells = [cell for cell in mine if (cell.op, cell.which) == (op, which)]
        for group in dict.fromkeys(map(_group(series), cells)):
            part = sorted(
                (c for c in cells if _group(series)(c) == group), key=lambda cell: cell.series[series]
            )
            names = list(dict.fromkeys(entry.name for cell in part for entry in cell.entries))
            if len(part) < 2:
                continue
            points = {name: [_point(cell, name, value) for cell in part] for name in names}
            title = f"{op}, {which}\n{group}"
            xs = [cell.series[series] for cell in part]
            found.append(Curves(title, _LABELS.get(series, series), y_label, xs, points))
    return found


def _group(series: str) -> Callable[[Cell], str]:
    """What cells of one panel have in common, beside op and pass."""

    def group(cell: Cell) -> str:
        threads = None if series == "threads" else cell.threads
        shape = cell.shape
        sizes = {"B": shape.batch, "N": shape.pixels, "C": shape.channels, "L": shape.tokens}
        label = "x".join(name if name == series else str(size) for name, size in sizes.items())
        return f"{label} {where(cell.dtype, threads)}, {cell.layout}"

    return group


def _point(cell: Cell, name: str, value: Callable[[Entry], Point]) -> Point:
    entry = next((entry for entry in cell.entries if entry.name == name), None)
    if entry is None:
        return Point(None, "takes no part")
    if not entry.timed:
        return Point(None, _short(entry))
    return value(entry)


def _short(entry: Entry) -> str:
    """Why there is no figure, in few words: what would be needed, or what became of it."""
    return entry.status if entry.too_large is None else f"needs {entry.too_large / 1e9:.3g} GB"


def milliseconds(entry: Entry) -> Point:
    """Median and quantiles of an entry with times."""
    times = quantiles([1e3 * seconds for seconds in entry.seconds])
    return Point(times.median, None, times.low, times.high)


def megabytes(entry: Entry) -> Point:
    """Extra memory of an entry, or why there is none to draw."""
    # A logarithmic axis has no 0.
    if not entry.extra_bytes:
        return Point(None, "not measured" if entry.extra_bytes is None else "no extra memory")
    return Point(entry.extra_bytes / 1e6)

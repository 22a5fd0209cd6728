"""The report of a run of ``python -m benchmarks models``: networks and their parts."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.networks.cases import NECK, STAGE
from benchmarks.networks.records import NetworkCell, NetworkRun
from benchmarks.networks.report import goals
from benchmarks.networks.sides import CONVOLUTIONAL, FUSED
from benchmarks.report import head
from benchmarks.reporting import environment, rates
from benchmarks.reporting.blocks import (
    Block,
    Drawing,
    Heading,
    Item,
    Marks,
    Paragraph,
    Table,
    Tiles,
    drawn,
    number,
)
from benchmarks.summary import geometric_mean
from benchmarks.timing import quantiles

DRAWINGS = (
    Drawing(
        "rate",
        lambda run: rates.draw(run.cells, "images/s", rates.rate),
        "Images per second",
        "Bars: images per second of each network and part, by pass",
        rates.RATE_CAPTION,
    ),
    Drawing(
        "memory",
        lambda run: rates.draw(run.cells, "MB", rates.megabytes),
        "Memory",
        "Bars: peak memory of each network and part, by pass",
        rates.MEMORY_CAPTION,
    ),
)


def blocks(name: str, run: NetworkRun) -> Iterator[Block]:
    """All of one file, under its name."""
    cells = run.cells
    yield Heading(f"{name}: networks", 2)
    yield from (Paragraph(line) for line in head(run).splitlines())
    marks = list(goals(cells))
    yield _tiles(cells, [mark.met for mark in marks])
    if marks:
        yield Heading("Summary")
        yield Marks(marks)
    yield from drawn(name, run, DRAWINGS)
    yield Heading("All networks")
    yield _table(cells)
    yield from (Paragraph(f"Problem: {problem}") for problem in run.problems)
    yield from environment.section(run)


def _tiles(cells: list[NetworkCell], met: list[bool | None]) -> Tiles:
    tiles = []
    for kinds, what in (((STAGE,), "stages"), ((NECK,), "pyramids")):
        for which in dict.fromkeys(cell.which for cell in cells):
            found = [_speed(c, FUSED) for c in cells if c.kind in kinds and c.which == which]
            known = [ratio for ratio in found if ratio is not None]
            if known:
                text = f"as fast as convolutions, {what}, {which}, geometric mean"
                tiles.append((f"{geometric_mean(known):.2f} x", text))
    tiles.append((f"{sum(bool(each) for each in met)} of {len(met)}", "goals met"))
    return Tiles(tiles)


def _speed(cell: NetworkCell, name: str) -> float | None:
    side, base = cell.side(name), cell.side(CONVOLUTIONAL)
    return None if side is None or base is None else base.median / side.median


def _table(cells: list[NetworkCell]) -> Table:
    titles = ["network", "kind", "dtype", "layout", "threads", "pass", "code", "ms", "20 %", "80 %", "rounds"]
    titles += ["images/s", "times as fast as convolutions", "GMACs", "peak MB", "note"]
    rows = []
    for cell in cells:
        for side in cell.sides:
            times = quantiles(side.seconds) if side.seconds else (None, None, None)
            threads = "-" if cell.threads is None else str(cell.threads)
            row: list[Item] = [cell.name, cell.kind, cell.dtype, cell.layout, threads, cell.which, side.name]
            row += [number(value, ".2f", 1e-3) for value in times]
            row += [
                number(len(side.seconds), ".0f"),
                number(cell.batch / side.median if side.seconds else None),
                number(_speed(cell, side.name)),
                number(side.macs, ".2f", 1e9),
                number(side.peak_bytes, ".1f", 1e6),
                side.reason or "",
            ]
            rows.append(row)
    return Table(titles, rows)

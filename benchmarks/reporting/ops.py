"""The report of a run of ``python -m benchmarks cpu`` or ``gpu``: single ops and the stack."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import summary
from benchmarks.records import Run
from benchmarks.report import head
from benchmarks.reporting import bars, environment, roofline, tables
from benchmarks.reporting.blocks import (
    Block,
    Drawing,
    Heading,
    Marks,
    Paragraph,
    Table,
    Tiles,
    drawn,
    number,
)
from benchmarks.timing import quantiles

DRAWINGS = (
    Drawing(
        "speedup",
        bars.speeds,
        "Against each peer",
        "Bars: each peer's time in multiples of ours, by dtype and pass",
        bars.SPEED_CAPTION,
    ),
    Drawing(
        "roofline",
        roofline.draw,
        "Against the machine",
        "Roofline: FLOP rate of each cell over its FLOPs per byte, below the two measured ceilings",
        roofline.CAPTION,
    ),
    Drawing(
        "memory",
        bars.memory,
        "Memory",
        "Bars: extra memory of ours and of each peer in maps, by dtype and pass",
        bars.MEMORY_CAPTION,
    ),
    Drawing(
        "stack",
        bars.stacks,
        "Stack of modules",
        "Points: the stack's speed and memory against eager mode, with its marks",
        bars.STACK_CAPTION,
    ),
)


def blocks(name: str, run: Run) -> Iterator[Block]:
    """All of one file, under its name."""
    yield Heading(f"{name}: single ops and stacks", 2)
    yield from (Paragraph(line) for line in head(run).splitlines())
    yield _tiles(run)
    yield Heading("Summary")
    yield Marks(summary.marks(run))
    yield Table(
        ["of", "pass", "best peer's time / ours, geometric mean", "cells"],
        [
            [summary.where(dtype, threads), which, number(mean), number(count, ".0f")]
            for dtype, threads, which, mean, count in summary.means(run)
        ],
    )
    yield Table(
        ["cell", "best peer", "its time / ours"],
        [
            [summary.describe(cell), cell.best_peer.name if cell.best_peer else "-", number(cell.best_ratio)]
            for cell in summary.worst(run)
        ],
        title="Nearest to their best peer",
    )
    yield from drawn(name, run, DRAWINGS)
    yield Heading("All cells")
    yield tables.cells(run)
    yield tables.entries(run)
    yield from tables.missing(run)
    yield from environment.section(run)


def _tiles(run: Run) -> Tiles:
    tiles = [
        (f"{mean:.2f} x", f"the best peer's time / ours, {which}, geometric mean")
        for dtype, _, which, mean, _ in summary.means(run)
        if dtype == "all"
    ]
    known = [mark.met for mark in summary.marks(run) if mark.met is not None]
    tiles.append((f"{sum(known)} of {len(known)}", "marks met"))
    near = [cell.over_floor for cell in run.cells if cell.over_floor is not None]
    if near:
        middle = quantiles(near)
        tiles.append((f"{middle.median:.2f} x", "our time / the floor, in the median cell"))
    tiles.append((str(len(run.cells)), "cells measured"))
    return Tiles(tiles)

"""Which points are measured to see how an op scales: one size at a time, around a base shape.

Names only, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from benchmarks.cases import GPU_STACK_SHAPE, OPS, QUICK_STACK_SHAPE, STACK, STACK_SHAPE, Case, Shape

# Large enough for memory to matter, small enough for everything to run at it.
BASES = {"cpu": Shape(1, 224, 224, 256, 16), "cuda": Shape(8, 224, 224, 256, 16)}
QUICK_BASE = Shape(2, 8, 8, 32, 8)
# What arrives in chunks: a map of a quarter of a million pixels, or of eight million.
STREAMS = {"cpu": Shape(1, 512, 512, 256, 16), "cuda": Shape(8, 1024, 1024, 256, 16)}
QUICK_STREAM = Shape(1, 32, 16, 32, 8)
STACKS = {"cpu": STACK_SHAPE, "cuda": GPU_STACK_SHAPE}

THREADS = "threads"


class Series(NamedTuple):
    """One size that varies: its values, and in a quick run; ``text`` says what it is."""

    name: str
    text: str
    values: tuple[int, ...]
    quick: tuple[int, ...]


SERIES = (
    # Sides of square maps: N is their square.
    Series("N", "pixels", (14, 28, 56, 112, 224, 448, 1024, 2048), (4, 8, 16)),
    Series("L", "tokens", (1, 4, 8, 16, 32, 64, 128, 256), (1, 8, 16)),
    Series("C", "channels", (64, 128, 256, 512, 1024, 2048), (16, 32, 64)),
    Series("B", "samples", (1, 2, 4, 8, 16), (1, 2, 4)),
    Series(THREADS, "threads of a CPU", (1, 2, 4, 8, 16, 32, 64), (1, 2)),
    Series("modules", "fused passes in a stack", (1, 2, 3, 4, 5, 6), (1, 2)),
    Series("chunks", "chunks of a map, merged", (1, 4, 16, 64, 256), (1, 4)),
)
NAMES = tuple(series.name for series in SERIES)

# A series of sizes of the shape: the shape with that size.
_SIZES: dict[str, Callable[[Shape, int], Shape]] = {
    "N": lambda shape, side: shape._replace(height=side, width=side),
    "L": lambda shape, count: shape._replace(tokens=count),
    "C": lambda shape, count: shape._replace(channels=count),
    "B": lambda shape, count: shape._replace(batch=count),
}


class Point(NamedTuple):
    """A case on so many threads, None for a GPU."""

    case: Case
    threads: int | None


def points(
    device: str,
    dtype: str,
    layout: str,
    threads: int | None,
    *,
    quick: bool = False,
    only: Collection[str] = NAMES,
    ops: Sequence[str] = OPS,
) -> dict[Point, dict[str, int]]:
    """Every point, and the series that it belongs to with its value there.

    A point of several series, as the base is, is measured once. ``threads``: all that are used outside the
    series of threads.

    Example:
        >>> found = points("cpu", "fp32", "nchw", 2, quick=True, only=["N"], ops=["project"])
        >>> [(point.case.label, series) for point, series in found.items()][0]
        ('project 2x16x32x8 fp32 nchw', {'N': 16})
    """
    found: dict[Point, dict[str, int]] = {}
    for series in SERIES:
        if series.name not in only:
            continue
        values = series.quick if quick else series.values
        if series.name == THREADS:
            values = tuple(value for value in values if threads is not None and value <= threads)
        for value in values:
            for case in _cases(series.name, value, device, dtype, layout, quick, ops):
                count = value if series.name == THREADS else threads
                size = case.shape.pixels if series.name == "N" else value
                found.setdefault(Point(case, count), {})[series.name] = size
    return found


def _cases(
    name: str, value: int, device: str, dtype: str, layout: str, quick: bool, ops: Sequence[str]
) -> Iterator[Case]:
    if name == "modules":
        yield Case(STACK, QUICK_STACK_SHAPE if quick else STACKS[device], dtype, layout, value)
        return
    if name == "chunks":
        if "tokenize" in ops:
            yield Case("tokenize", QUICK_STREAM if quick else STREAMS[device], dtype, layout, value)
        return
    base = QUICK_BASE if quick else BASES[device]
    for op in ops:
        shape = base if name == THREADS else _SIZES[name](base, value)
        yield Case(op, shape, dtype, layout)

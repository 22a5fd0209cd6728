"""What the model predicts for the table's rows, beside measured times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

from benchmarks import results
from tools.triton.offline import TABLE

# (op, shape, dtype, layout)
Key = tuple[str, str, str, str]
_TERMS = ("floor_us", "memory_us", "cache_us", "products_us", "waiting_us", "total_us")


def render(gpu: str, measured: Path | None = None, table: Path = TABLE) -> str:
    """A line for each row of a GPU, in microseconds. ``measured``: a result file of the benchmark.

    Raises:
        ValueError: the table has no rows of the GPU, or the result file no times of one.
    """
    _, rows = results.read(table)
    found = [row for row in rows if row["gpu"] == gpu and not row["error"]]
    if not found:
        raise ValueError(
            f"`gpu` must be one of {', '.join(sorted({row['gpu'] for row in rows}))}, got {gpu!r}"
        )
    times = {} if measured is None else backwards_apart(results.load(measured).rows)
    if measured is not None and not times:
        raise ValueError(f"{measured} must have times of vt_fast on a GPU")
    lines = []
    for row in found:
        key = (row["op"], row["shape"], row["dtype"], row["layout"])
        terms = [float(row[name]) for name in _TERMS]
        lines.append([" ".join(key), row["setting"], *terms, times[key] * 1e6 if key in times else None])
    headings = ["call", "setting", *(name.removesuffix("_us") for name in _TERMS), "measured"]
    return str(tabulate(lines, headings, floatfmt=".1f", missingval="-"))


def backwards_apart(rows: Iterable[results.Row]) -> dict[Key, float]:
    """Our seconds on a GPU, by graphs where there are any. A backward's are what it adds to the forward."""
    passes: dict[tuple[str, str], dict[Key, float]] = defaultdict(dict)
    for row in rows:
        if row.role == results.OURS and row.median is not None:
            passes[row.clock, row.which][row.case, row.shape, row.dtype, row.layout] = row.median
    found: dict[Key, float] = {}
    for clock in ("calls", "graph"):
        forward = passes[clock, "forward"]
        found |= forward
        for key, seconds in passes[clock, "forward+backward"].items():
            if key in forward:
                found[f"{key[0]}_backward", key[1], key[2], key[3]] = seconds - forward[key]
    return found

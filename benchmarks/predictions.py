"""What the model says next to what was measured, call by call: ``python -m benchmarks predict``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import FORWARD
from benchmarks.records import Run

TABLE = Path(__file__).parent / "results" / "offline.json"

_Row = Mapping[str, Any]
_HEADINGS = ("call", "setting", "floor", "memory", "cache", "products", "waiting", "model", "measured")


def rows(path: Path, target: str) -> list[_Row]:
    """The rows of an offline table that are of a target and compiled.

    Raises:
        ValueError: there are none.
    """
    table = json.loads(path.read_text())["rows"]
    found = [row for row in table if row["target"] == target and row["error"] is None]
    if not found:
        known = ", ".join(sorted({row["target"] for row in table}))
        raise ValueError(f"`target` must be one of {known}, got {target!r}")
    return found


def render(table: Iterable[_Row], run: Run | None = None) -> str:
    """A line for each call, in microseconds."""
    measured = {} if run is None else dict(_measured(run))
    lines = [_HEADINGS]
    for row in table:
        terms = row["model_terms_us"]
        label = f"{row['op']} {row['shape']} {row['dtype']} {row['layout']}"
        seconds = measured.get((row["op"], row["shape"], row["dtype"], row["layout"]))
        lines.append(
            (
                label,
                row["setting"],
                *(f"{value:.1f}" for value in (row["floor_us"], *terms.values(), row["model_us"])),
                "-" if seconds is None else f"{seconds * 1e6:.1f}",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    text = (
        "  ".join(
            word.ljust(width) if column < 2 else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in text)


def _measured(run: Run) -> Iterator[tuple[tuple[str, str, str, str], float]]:
    """Seconds by op, shape, dtype and layout; a backward's are what it adds to the forward."""
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for cell in run.cells:
        ours = cell.ours
        if ours is not None and ours.timed:
            key = (cell.op, cell.shape.label, cell.dtype, cell.layout)
            found.setdefault(key, {})[cell.which] = ours.median
    for (op, *rest), seconds in found.items():
        forward = seconds.get(FORWARD)
        if forward is not None:
            yield (op, *rest), forward  # type: ignore[misc]
        for which, both in seconds.items():
            if which != FORWARD and forward is not None:
                yield (f"{op}_backward", *rest), both - forward  # type: ignore[misc]

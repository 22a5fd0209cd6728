"""A run as a picture: time over floor, and every peer's time over ours."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases import FORWARD, OPS
from benchmarks.records import PEER, Cell, Run
from benchmarks.summary import FLOOR_MARKS, GPU_GOALS, where


def plot(run: Run, path: Path) -> Path:
    """Draw the single ops, a column of panels for each dtype and number of threads; returns the path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [cell for cell in run.cells if cell.op in OPS and cell.ours is not None and cell.ours.timed]
    groups = list(dict.fromkeys((cell.dtype, cell.threads) for cell in cells))
    if not groups:
        raise ValueError("the run holds no figure of a single op")
    most = max(sum((cell.dtype, cell.threads) == group for cell in cells) for group in groups)
    figure, panels = pyplot.subplots(
        len(groups), 2, figsize=(15, max(3.0, 0.2 * most + 1) * len(groups)), squeeze=False
    )
    for (dtype, threads), (left, right) in zip(groups, panels, strict=True):
        part = [cell for cell in cells if (cell.dtype, cell.threads) == (dtype, threads)]
        rows = range(len(part))
        left.barh(rows, [cell.over_floor or 0.0 for cell in part], color="tab:blue")
        left.axvline(1.0, color="black", linewidth=1)
        marks = [1 / goal for goal in GPU_GOALS.values()] if run.on_gpu else [FLOOR_MARKS[dtype]]
        for mark in marks:
            left.axvline(mark, color="tab:red", linewidth=1, linestyle="--")
        left.set_yticks(rows, [_label(cell) for cell in part], fontsize=7)
        left.set_title(f"{where(dtype, threads)}: our time / floor (dashed: mark)")
        for name in dict.fromkeys(
            e.name for cell in part for e in cell.entries if e.kind == PEER and e.timed
        ):
            right.plot(*_ratios(part, name), "o", markersize=4, label=name)
        right.axvline(1.0, color="black", linewidth=1)
        right.set_xscale("log")
        right.set_yticks(rows, [])
        right.set_title("peer's time / ours (right of the line: slower than ours)")
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for panel in (left, right):
            panel.set_ylim(len(part) - 0.5, -0.5)
            panel.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _label(cell: Cell) -> str:
    layout = "nchw" if cell.layout == "nchw" else "c.last"
    return f"{cell.op} {cell.shape.label} {layout} {'fwd' if cell.which == FORWARD else 'fwd+bwd'}"


def _ratios(cells: list[Cell], name: str) -> tuple[list[float], list[int]]:
    found = [
        (entry.median / cell.ours.median, row)
        for row, cell in enumerate(cells)
        for entry in cell.entries
        if entry.name == name and entry.timed and cell.ours is not None
    ]
    return [ratio for ratio, _ in found], [row for _, row in found]

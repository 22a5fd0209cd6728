"""The cells of networks as tables, and which goals they meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.networks.cases import NECK, STAGE
from benchmarks.networks.records import NetworkCell, NetworkRun
from benchmarks.networks.sides import CONVOLUTIONAL, FUSED, INFERENCE
from benchmarks.report import head
from benchmarks.summary import Mark
from benchmarks.timing import spread_text

# The FPN's laterals and convolutions against VT-FPN's: times faster at least.
NECK_SPEED = 5.0


def render(run: NetworkRun) -> str:
    """All tables, the goals and problems. Behind a median: the 20 % and 80 % quantiles against it."""
    last = [*_goal_lines(run.cells), *(f"Problem: {problem}" for problem in run.problems)]
    return "\n\n".join([head(run), *(_table(cell) for cell in run.cells), "\n".join(last)])


def _table(cell: NetworkCell) -> str:
    where = "" if cell.threads is None else f", {cell.threads} thread(s)"
    lines = [f"{cell.name}: {cell.which}, {cell.dtype}, {cell.layout}{where}"]
    lines.append(
        f"  {'':14}{'ms':>10}{'20 to 80 %':>12}{'images/s':>10}{'GMACs':>9}{'peak MB':>9}"
        f"{'speed-up over convolutions':>29}"
    )
    base = cell.side(CONVOLUTIONAL)
    for side in cell.sides:
        if not side.seconds:
            lines.append(f"  {side.name:14} no figure: {side.reason}")
            continue
        ratio = "-" if base is None else f"{base.median / side.median:.2f}"
        lines.append(
            f"  {side.name:14}{side.median * 1e3:10.1f}{spread_text(side.seconds):>12}"
            f"{cell.batch / side.median:10.1f}{(side.macs or 0) / 1e9:9.2f}"
            f"{(side.peak_bytes or 0) / 1e6:9.0f}{ratio:>29}"
        )
    return "\n".join(lines)


def goals(cells: Iterable[NetworkCell]) -> Iterator[Mark]:
    """Each goal, met or missed."""
    for cell in cells:
        ours, base = cell.side(FUSED), cell.side(CONVOLUTIONAL)
        if cell.kind not in (STAGE, NECK) or ours is None or base is None:
            continue
        ratio = base.median / ours.median
        wanted = NECK_SPEED if cell.kind == NECK and cell.which == INFERENCE else 1.0
        text = f"{cell.name}, {cell.which}: {ratio:.2f} times as fast"
        yield Mark(text, ratio >= wanted, f"wanted {wanted:g}")


def _goal_lines(cells: list[NetworkCell]) -> Iterator[str]:
    yield "goals"
    for mark in goals(cells):
        yield f"  {'met' if mark.met else 'MISSED':7} {mark.text}, {mark.detail}"

"""Tables of single ops and stacks: every cell, everybody in it, and who has no figure."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import summary
from benchmarks.records import Cell, Entry, Run
from benchmarks.report import Unit
from benchmarks.reporting.blocks import Block, Heading, Item, Number, Paragraph, Table, number
from benchmarks.reporting.derived import achieved
from benchmarks.timing import quantiles


def _verdicts(run: Run) -> dict[int, bool]:
    """Whether a cell meets its dtype's mark or a GPU's goal, by the cell's identity, where there is one."""
    if run.on_gpu:
        goals = list(summary.gpu_goals(run))
        return {id(c): True for _, met, _ in goals for c in met} | {
            id(c): False for _, _, below in goals for c in below
        }
    late = {id(cell) for cell in summary.over_floor(run)}
    judged = (c for c in run.cells if c.over_floor is not None and c.dtype in summary.FLOOR_MARKS)
    return {id(cell): id(cell) not in late for cell in judged}


def cells(run: Run) -> Table:
    """Every cell: our time with its quantiles, what it reaches, the best peer, memory."""
    unit = _unit(run)
    verdicts = _verdicts(run)
    titles = ["op", "BxNxCxL", "dtype", "layout", *([] if run.on_gpu else ["threads"]), "pass"]
    titles += [unit.name, "20 %", "80 %", f"floor {unit.name}"]
    titles += ["floor / time" if run.on_gpu else "time / floor", "bound", "mark", "GB/s", "of copy_"]
    titles += ["GFLOP/s", "of torch.mm", "best peer", unit.name, "best / ours", "extra maps", "best's extra"]
    rows = []
    for cell in run.cells:
        ours, best = cell.ours, cell.best_peer
        reached = achieved(cell, ours)
        row = [*_name(run, cell), *_times(ours, unit), number(cell.floor_seconds, unit.form, unit.seconds)]
        row += [number(cell.reached if run.on_gpu else cell.over_floor), cell.bound or "-"]
        row.append({True: "met", False: "missed", None: "-"}[verdicts.get(id(cell))])
        if reached is None or cell.floor is None:
            row += [number(None)] * 4
        else:
            row += [
                number(reached.bandwidth, ".1f", 1e9),
                number(reached.bandwidth / cell.floor.bandwidth, ".0f", 0.01, " %"),
                number(reached.flop_rate, ".1f", 1e9),
                number(reached.flop_rate / cell.floor.matrix_rate, ".0f", 0.01, " %"),
            ]
        row += ["-" if best is None else best.name, _times(best, unit)[0], number(cell.best_ratio)]
        rows.append([*row, _extra(cell, ours), _extra(cell, best)])
    return Table(titles, rows)


def entries(run: Run) -> Table:
    """Everybody in every cell, those without a figure too; folded away."""
    unit = _unit(run)
    titles = ["op", "BxNxCxL", "dtype", "layout", *([] if run.on_gpu else ["threads"]), "pass"]
    titles += ["contender", unit.name, "20 %", "80 %", "rounds", "time / ours", "extra maps", "note"]
    rows = []
    for cell in run.cells:
        for entry in cell.entries:
            ours = cell.ours
            ratio = None
            if entry.timed and ours is not None and ours.timed:
                ratio = entry.median / ours.median
            notes = [entry.status if entry.reason else "", entry.reason, entry.timed_as, entry.note]
            rows.append(
                [
                    *_name(run, cell),
                    entry.name,
                    *_times(entry, unit),
                    number(len(entry.seconds), ".0f"),
                    number(ratio),
                    _extra(cell, entry),
                    "; ".join(filter(None, notes)),
                ]
            )
    return Table(titles, rows, title=f"Every contender in every cell ({len(rows)} rows)", folded=True)


def _unit(run: Run) -> Unit:
    """Calls in which next to nothing is computed are short on a CPU too."""
    return Unit("us", 1e-6, ".1f") if run.settings.get("mode") == "overhead" else Unit.of(run)


def _name(run: Run, cell: Cell) -> list[Item]:
    threads: list[Item] = [] if run.on_gpu else ["-" if cell.threads is None else str(cell.threads)]
    op = cell.op if cell.parts is None else f"{cell.op} in {cell.parts}"
    return [op, cell.shape.label, cell.dtype, cell.layout, *threads, cell.which]


def _times(entry: Entry | None, unit: Unit) -> list[Item]:
    """Median and quantiles."""
    if entry is None or not entry.timed:
        return [Number("-" if entry is None else entry.status, None), number(None), number(None)]
    return [number(value, unit.form, unit.seconds) for value in quantiles(entry.seconds)]


def _extra(cell: Cell, entry: Entry | None) -> Number:
    extra = None if entry is None or entry.extra_bytes is None else entry.extra_bytes / cell.map_bytes
    return number(extra)


def missing(run: Run) -> Iterator[Block]:
    """Who has no figure, why, and what could not be measured at all."""
    without = summary.without_figure(run)
    left_out = run.settings.get("left_out", [])
    if not (without or run.problems or left_out):
        return
    yield Heading("Without a figure")
    if without:
        rows: list[list[Item]] = [
            [name, status, number(len(examples), ".0f"), examples[0]]
            for (name, status), examples in without.items()
        ]
        yield Table(["contender", "what became of it", "cells", "the first of them"], rows)
    if left_out:
        yield Table(
            ["left out", "for want of", "reason"], [[c["case"], c["why"], c["reason"]] for c in left_out]
        )
    yield from (Paragraph(f"Problem: {problem}") for problem in run.problems)

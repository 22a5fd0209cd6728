"""A run as text for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks import summary
from benchmarks.cases import FORWARD, OPS, STACK
from benchmarks.figures import AnyRun
from benchmarks.origins import origin
from benchmarks.peers import NAMES
from benchmarks.records import BACKEND, EAGER, PEER, SHORT, Cell, Entry, Run
from benchmarks.tables import table, wrapped
from benchmarks.timing import spread_text

_PASS = {FORWARD: "fwd"}


def render(run: Run) -> str:
    """All tables and the summary."""
    parts = [head(run)]
    groups = dict.fromkeys((cell.dtype, cell.threads) for cell in run.cells if cell.op in OPS)
    for dtype, threads in groups:
        cells = [cell for cell in run.cells if (cell.dtype, cell.threads) == (dtype, threads)]
        parts.append(_ops_table(run, [cell for cell in cells if cell.op in OPS], dtype, threads))
    stacks = [cell for cell in run.cells if cell.op == STACK]
    if stacks:
        parts.append(_stack_table(run, stacks))
    parts.append("\n".join(_summary(run)))
    return "\n\n".join(parts)


def head(run: AnyRun) -> str:
    """Machine, versions, and what is to be said of a run as a whole."""
    machine = run.machine
    commit = machine.get("commit") or {"hash": "unknown", "dirty": False}
    state = {True: " with changes", False: "", None: ", as the environment says"}[commit["dirty"]]
    versions = "torch {torch}, vt_fast {vt_fast}, ".format(**machine["versions"])
    lines = [
        _gpu(run) if run.on_gpu else "{cpu}, {cores} cores, {instructions}".format(**machine["devices"]),
        f"{versions}commit {commit['hash'][:12]}{state}",
    ]
    if run.settings.get("launch_seconds"):
        launch = statistics.median(run.settings["launch_seconds"])
        lines.append(f"A graph that does next to nothing takes {launch * 1e6:.1f} us: a part of each time.")
    if run.settings.get("tf32"):
        lines.append("TF32: all sides may multiply fp32 with the digits of fp16.")
    if run.settings.get("quick"):
        lines.append("A quick run: its shapes are tiny and its figures mean nothing.")
    if not run.complete:
        lines.append("This run was not finished.")
    absent = run.settings.get("absent", {})
    for reason in dict.fromkeys(absent.values()):
        names = [name for name, why in absent.items() if why == reason]
        lines.append(f"Absent: {', '.join(names)}: {reason}")
    left_out = run.settings.get("left_out", [])
    for why in dict.fromkeys(item["why"] for item in left_out):
        items = [item for item in left_out if item["why"] == why]
        first = f"{items[0]['case']}: {items[0]['reason']}"
        lines.append(f"Left out for want of {why}: {len(items)} cases, first {first}")
    return "\n".join(lines)


def _gpu(run: AnyRun) -> str:
    gpu, versions = run.machine["gpu"], run.machine["versions"]
    memory = f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
    driver = f"driver {gpu['driver_version']}, CUDA {gpu['cuda']}" if gpu["cuda"] else f"ROCm {gpu['hip']}"
    name = f"{gpu['name']}, {memory}, {gpu['processors']} multiprocessors, sm {gpu['capability']}"
    return f"{name}, {driver}, triton {versions['triton']}"


class Unit(NamedTuple):
    """In what a table has times."""

    name: str
    seconds: float
    form: str

    @classmethod
    def of(cls, run: Run) -> Unit:
        """A GPU's calls are shorter."""
        return cls("us", 1e-6, ".1f") if run.on_gpu else cls("ms", 1e-3, ".2f")


def peer_names(cells: Sequence[Cell]) -> list[str]:
    """All peers of some cells, in the registry's order.

    Those that take part on one kind of device alone come last.
    """
    found = [entry.name for cell in cells for entry in cell.entries if entry.kind == PEER]
    return list(dict.fromkeys([*(name for name in NAMES if name in found), *found]))


def _ops_table(run: Run, cells: list[Cell], dtype: str, threads: int | None) -> str:
    backends = list(dict.fromkeys(e.name for cell in cells for e in cell.entries if e.kind == BACKEND))
    peers = peer_names(cells)
    ours = next((cell.ours.name for cell in cells if cell.ours is not None), "ours")
    unit = Unit.of(run)
    columns = ["op", "BxNxCxL", "layout", "pass", unit.name, "20 to\n80 %", f"floor\n{unit.name}"]
    columns += ["floor /\ntime" if run.on_gpu else "time /\nfloor", "bound"]
    columns += ["plain\ncall"] if run.on_gpu else []
    columns += ["best /\nours"]
    columns += [name.replace("compile ", "compile\n").replace(" ", "\n", 1) for name in [*peers, *backends]]
    columns += ["extra\nmaps", "best's\nextra"]
    rows = [_row(run, cell, [*peers, *backends]) for cell in cells]
    notes = [
        f'{summary.where(dtype, threads)}. {unit.name}: median of "{ours}", and how far from it the '
        '20 % and 80 % quantiles of its times are. Columns from "best" on: time of '
        "the best peer, of each peer and of our other backends, in multiples of ours; above 1 it is slower "
        "than ours. Extra: peak memory above inputs, results and gradients, 1 map being the bytes of x."
    ]
    if run.on_gpu:
        notes.append(
            "Times are of captured graphs, the cache flushed before. Plain call: an ordinary call of ours, "
            "with what Python takes to ask for it where that is longer, in multiples of the graph's time. "
            "* behind a figure: it could not be captured, and is timed as a plain call."
        )
    return "\n".join([table(columns, rows), wrapped(*notes), *_models(cells)])


def _models(cells: list[Cell]) -> Iterator[str]:
    for shape in dict.fromkeys(cell.shape for cell in cells):
        model = origin(shape)
        if model is not None:
            yield f"  {shape.label}: {model}"


def _row(run: Run, cell: Cell, others: list[str]) -> list[str]:
    times = Unit.of(run)
    entries = {entry.name: entry for entry in cell.entries}
    ours, best = cell.ours, cell.best_peer
    row = [cell.op, cell.shape.label, cell.layout, _PASS.get(cell.which, "fwd+bwd")]
    row.append("-" if ours is None else _figure(ours, times.seconds, times.form))
    row.append(spread_text(ours.seconds) if ours is not None and ours.timed else "-")
    row.append(_number(cell.floor_seconds, times.seconds, times.form))
    row += [_number(cell.reached if run.on_gpu else cell.over_floor), cell.bound or "-"]
    row += [_number(None if ours is None else ours.eager_ratio)] if run.on_gpu else []
    row.append(_number(cell.best_ratio))
    unit = ours.median if ours is not None and ours.timed else None
    row += [_figure(entries.get(name), unit, ".2f") for name in others]
    return [*row, _extra(ours, cell), _extra(best, cell)]


def _figure(entry: Entry | None, unit: float | None, form: str) -> str:
    if entry is None:
        return ""
    if not entry.timed:
        return SHORT.get(entry.status, "-")
    mark = "*" if entry.timed_as == EAGER else ""
    return "-" if unit is None else format(entry.median / unit, form) + mark


def _number(value: float | None, unit: float = 1.0, form: str = ".2f") -> str:
    return "-" if value is None else format(value / unit, form)


def _extra(entry: Entry | None, cell: Cell) -> str:
    bytes_ = None if entry is None else entry.extra_bytes
    return "-" if bytes_ is None else f"{bytes_ / cell.map_bytes:.2f}"


def _stack_table(run: Run, cells: list[Cell]) -> str:
    unit = Unit.of(run)
    columns = ["stack", "layout", "pass", "dtype", *([] if run.on_gpu else ["threads"])]
    columns += ["code", unit.name, "20 to\n80 %", "eager /\nthis", "extra\nmaps"]
    rows = []
    for cell in cells:
        eager = next((entry for entry in cell.entries if entry.kind == PEER), None)
        for entry in cell.entries:
            ratio = None
            if eager is not None and eager.timed and entry.timed:
                ratio = eager.median / entry.median
            row = [cell.shape.label, cell.layout, _PASS.get(cell.which, "fwd+bwd"), cell.dtype]
            row += [] if run.on_gpu else [str(cell.threads)]
            row += [entry.name, _figure(entry, unit.seconds, unit.form)]
            row += [spread_text(entry.seconds) if entry.timed else "-", _number(ratio)]
            rows.append([*row, _extra(entry, cell)])
    return table(columns, rows)


def _summary(run: Run) -> Iterator[str]:
    yield "Best peer's time in multiples of ours, geometric means of single ops:"
    for dtype, threads, which, mean, count in summary.means(run):
        yield f"  {summary.where(dtype, threads)}, {which}: {mean:.2f} ({count} cells)"
    yield "Nearest to their best peer:"
    for cell in summary.worst(run):
        best = cell.best_peer
        yield f"  {summary.describe(cell)}: {cell.best_ratio:.2f} ({best.name if best else '-'})"
    late = summary.over_floor(run)
    if late:
        yield "Over their mark in multiples of the floor:"
        for cell in late[:20]:
            yield f"  {summary.describe(cell)}: {cell.over_floor:.2f} ({cell.bound})"
        if len(late) > 20:
            yield f"  and {len(late) - 20} more"
    for goal, met, below in summary.gpu_goals(run):
        share = f"{len(met)} of {len(met) + len(below)} cells"
        yield f"Floor / time of {goal.text}; {share} reach {goal.least:.2f}:"
        for word, cells in (("met", met), ("NOT met", below)):
            for cell in cells:
                yield f"  {word}: {summary.describe(cell)}: {cell.reached:.2f} ({cell.bound})"
    yield from missing(run)
    yield "Marks:"
    for mark in summary.marks(run):
        yield f"  {mark.word}: {mark.text} ({mark.detail})"


def missing(run: Run) -> Iterator[str]:
    """Who has no figure, why, and what could not be measured at all."""
    without = summary.without_figure(run)
    if without:
        yield "Without a figure:"
    for (name, status), examples in without.items():
        yield f"  {name}, {status} in {len(examples)} cells, first {examples[0]}"
    for problem in run.problems:
        yield f"Problem: {problem}"

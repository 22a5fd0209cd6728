"""A run as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import summary
from benchmarks.cases import FORWARD, OPS, STACK
from benchmarks.peers import NAMES
from benchmarks.records import BACKEND, PEER, Cell, Entry, Run
from vt_fast.demo.tables import table, wrapped

_SHORT = {"wrong": "wrong", "skipped": "skip", "unavailable": "n/a", "failed": "fail"}
_PASS = {FORWARD: "fwd"}


def render(run: Run) -> str:
    """All tables and the summary."""
    parts = [_head(run)]
    groups = dict.fromkeys((cell.dtype, cell.threads) for cell in run.cells if cell.op in OPS)
    for dtype, threads in groups:
        cells = [cell for cell in run.cells if (cell.dtype, cell.threads) == (dtype, threads)]
        parts.append(_ops_table([cell for cell in cells if cell.op in OPS], dtype, threads))
    stacks = [cell for cell in run.cells if cell.op == STACK]
    if stacks:
        parts.append(_stack_table(stacks))
    parts.append("\n".join(_summary(run)))
    return "\n\n".join(parts)


def _head(run: Run) -> str:
    machine = run.machine
    commit = machine.get("commit") or {"hash": "unknown", "dirty": False}
    state = " with changes" if commit["dirty"] else ""
    lines = [
        "{cpu}, {cores} cores, {instructions}".format(**machine["devices"]),
        "torch {torch}, vt_fast {vt_fast}, ".format(**machine["versions"])
        + f"commit {commit['hash'][:12]}{state}",
    ]
    if run.settings.get("quick"):
        lines.append("A quick run: its shapes are tiny and its figures mean nothing.")
    if not run.complete:
        lines.append("This run was not finished.")
    return "\n".join(lines)


def _ops_table(cells: list[Cell], dtype: str, threads: int) -> str:
    backends = list(dict.fromkeys(e.name for cell in cells for e in cell.entries if e.kind == BACKEND))
    present = {entry.name for cell in cells for entry in cell.entries}
    peers = [name for name in NAMES if name in present]
    ours = next((cell.ours.name for cell in cells if cell.ours is not None), "ours")
    head = ["op", "BxNxCxL", "layout", "pass", "ms", "floor\nms", "time /\nfloor", "bound", "best /\nours"]
    head += [name.replace("compile ", "compile\n").replace(" ", "\n", 1) for name in [*peers, *backends]]
    head += ["extra\nmaps", "best's\nextra"]
    rows = [_row(cell, [*peers, *backends]) for cell in cells]
    note = wrapped(
        f'{dtype}, {threads} thread(s). ms: median of "{ours}". Columns from "best" on: time of the best '
        "peer, of each peer and of our other backends, in multiples of ours; above 1 it is slower than ours. "
        "Extra: peak memory above inputs, results and gradients, 1 map being the bytes of x."
    )
    return f"{table(head, rows)}\n{note}"


def _row(cell: Cell, others: list[str]) -> list[str]:
    entries = {entry.name: entry for entry in cell.entries}
    ours, best = cell.ours, cell.best_peer
    row = [cell.op, cell.shape.label, cell.layout, _PASS.get(cell.which, "fwd+bwd")]
    row.append("-" if ours is None else _figure(ours, 1e-3, ".2f"))
    row += [_number(cell.floor_seconds, 1e-3, ".2f"), _number(cell.over_floor), cell.bound or "-"]
    row.append(_number(cell.best_ratio))
    unit = ours.median if ours is not None and ours.timed else None
    row += [_figure(entries.get(name), unit, ".2f") for name in others]
    return [*row, _extra(ours, cell), _extra(best, cell)]


def _figure(entry: Entry | None, unit: float | None, form: str) -> str:
    if entry is None:
        return ""
    if not entry.timed:
        return _SHORT.get(entry.status, "-")
    return "-" if unit is None else format(entry.median / unit, form)


def _number(value: float | None, unit: float = 1.0, form: str = ".2f") -> str:
    return "-" if value is None else format(value / unit, form)


def _extra(entry: Entry | None, cell: Cell) -> str:
    bytes_ = None if entry is None else entry.extra_bytes
    return "-" if bytes_ is None else f"{bytes_ / cell.map_bytes:.2f}"


def _stack_table(cells: list[Cell]) -> str:
    head = ["stack", "layout", "pass", "dtype", "threads", "code", "ms", "eager /\nthis", "extra\nmaps"]
    rows = []
    for cell in cells:
        eager = next((entry for entry in cell.entries if entry.kind == PEER), None)
        for entry in cell.entries:
            ratio = None
            if eager is not None and eager.timed and entry.timed:
                ratio = eager.median / entry.median
            row = [cell.shape.label, cell.layout, _PASS.get(cell.which, "fwd+bwd"), cell.dtype]
            row += [str(cell.threads), entry.name, _figure(entry, 1e-3, ".2f"), _number(ratio)]
            rows.append([*row, _extra(entry, cell)])
    return table(head, rows)


def _summary(run: Run) -> Iterator[str]:
    yield "Best peer's time in multiples of ours, geometric means of single ops:"
    for dtype, threads, which, mean, count in summary.means(run):
        where = dtype if threads is None else f"{dtype}, {threads} thread(s)"
        yield f"  {where}, {which}: {mean:.2f} ({count} cells)"
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
    missing = summary.not_ok(run)
    if missing:
        yield "Without a figure:"
        reasons: dict[str, list[str]] = {}
        for cell, name, status, reason in missing:
            reasons.setdefault(f"{name}, {status}", []).append(f"{summary.describe(cell)}: {reason}")
        for title, examples in reasons.items():
            yield f"  {title} in {len(examples)} cells, first {examples[0]}"
    for problem in run.problems:
        yield f"Problem: {problem}"
    yield "Marks:"
    for mark in summary.marks(run):
        word = {True: "met", False: "NOT met", None: "not measured"}[mark.met]
        yield f"  {word}: {mark.text} ({mark.detail})"

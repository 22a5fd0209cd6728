"""``python -m benchmarks scaling``: time and memory against each size, one at a time around a base shape."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from benchmarks import cases, running, series
from benchmarks.cases import FORWARD
from benchmarks.records import SHORT, Cell, Entry, Run
from benchmarks.running import CPU, CUDA, Finished, UsageError
from benchmarks.tables import table, wrapped
from benchmarks.timing import QUICK, Budget

if TYPE_CHECKING:
    from benchmarks.compare import Before

MODE = "scaling"
BUDGET = Budget(seconds=0.3, least=5, most=100, patience=3.0)
# Elements of a map that may need all memory there is.
_HUGE = 1 << 29


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--quick", action="store_true", help="tiny shapes, few points: a smoke test")
    parser.add_argument("--only", nargs="+", choices=series.NAMES, default=list(series.NAMES))
    parser.add_argument("--op", nargs="+", choices=cases.OPS, default=list(cases.OPS))
    parser.add_argument("--pass", nargs="+", choices=cases.PASSES, default=list(cases.PASSES), dest="passes")
    parser.add_argument(
        "--device", type=running.device_name, default=CPU, help="cpu, cuda or cuda:N; default: %(default)s"
    )
    parser.add_argument("--dtype", choices=cases.GPU_DTYPES, help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--layout", choices=cases.LAYOUTS, default=cases.LAYOUTS[0])
    parser.add_argument("--threads", type=int, metavar="T", help="of a CPU; default: all that may be used")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="default: those that are not compiled")
    parser.add_argument("--compile", action="store_true", help="also those that are, which takes hours")
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="what would need more in all is not run, and says so; default: 0.8 of what is free",
    )


def main(options: argparse.Namespace, before: Before | None = None) -> Finished:
    """Run, save, print. 1 where a result of ours was wrong or a case could not be measured.

    Raises:
        UsageError: the arguments cannot be carried out.
        Incomparable: the run cannot be compared with that before.
    """
    from benchmarks.peers_gpu import ABSENT, ALL_NAMES, DEFAULT_NAMES, PLAIN_NAMES

    cpus = running.cpus_of(options.threads)
    on_gpu = options.device != CPU
    peers = options.peers
    if peers is None:
        peers = list(DEFAULT_NAMES if options.compile else PLAIN_NAMES)
    dtype = options.dtype or ("bf16" if on_gpu else "fp32")
    found = series.points(
        CUDA if on_gpu else CPU,
        dtype,
        options.layout,
        None if on_gpu else len(cpus),
        quick=options.quick,
        only=options.only,
        ops=options.op,
    )
    plan: dict[str, Any] = {
        "passes": options.passes,
        "peers": running.known_peers(peers, ALL_NAMES),
        "budget": (QUICK if options.quick else BUDGET)._asdict(),
        "quick": options.quick,
        "device": options.device if on_gpu else None,
        "memory_bytes": _memory(options.memory, on_gpu),
    }
    settings = {"mode": MODE, **plan, "dtype": dtype, "layout": options.layout, "threads": len(cpus)}
    run = Run(running.machine_of(options.device), settings | {"absent": ABSENT}, [], complete=False)
    if before is not None:
        before.accept(run)
    full = running.is_full(options, add_arguments, aside=("memory",))
    plans = [({**plan, "cases": some}, cpus[:count]) for some, count in processes(found)]

    def mark(cell: Cell) -> None:
        case = cases.Case(cell.op, cell.shape, cell.dtype, cell.layout, cell.parts)
        cell.series = found[series.Point(case, cell.threads)]

    status, output = running.conduct(run, plans, options, full=full, mark=mark)
    print(render(run))
    print(f"\nwritten to {output} after {run.settings['elapsed_seconds']:.0f} s")
    compared = 0 if before is None else before.report(run)
    return Finished(status or running.verdict(run) or compared, output)


def processes(points: Iterable[series.Point]) -> list[tuple[list[cases.Case], int | None]]:
    """Cases that share a process, and its threads: those of so many threads, but each huge one alone.

    Where memory runs out, malloc is not what it was: calls after that would find no warm pages any more.
    """
    found: dict[tuple[int, int | None, cases.Case | None], list[cases.Case]] = {}
    for case, threads in points:
        huge = case.shape.batch * case.shape.pixels * case.shape.channels > _HUGE
        found.setdefault((threads or 0, threads, case if huge else None), []).append(case)
    ordered = sorted(found.items(), key=lambda item: (item[0][0], item[0][2] is not None))
    return [(some, threads) for (_, threads, _), some in ordered]


def _memory(gigabytes: float | None, on_gpu: bool) -> int | None:
    """Bytes that a run may take; None where the worker finds that out, on a GPU.

    Raises:
        UsageError: it is no size.
    """
    from benchmarks import memory

    if gigabytes is None:
        return None if on_gpu else memory.limit()
    if not gigabytes > 0:
        raise UsageError(f"--memory must be above 0, got {gigabytes}")
    return int(gigabytes * 1e9)


def render(run: Run) -> str:
    """Two tables for each series, op and pass, one of times and one of memory; then the reasons."""
    from benchmarks.report import head, missing

    parts = [head(run)]
    parts.append(
        wrapped(
            "Medians in ms; peak memory above inputs, results and gradients in MB. In place of a figure: "
            "what a contender would need, all in all, where that is more than it may have; skip: "
            "hopelessly slow; fail: it raised; wrong: its result is."
        )
    )
    for each in series.SERIES:
        mine = [cell for cell in run.cells if each.name in cell.series]
        for op, which in dict.fromkeys((cell.op, cell.which) for cell in mine):
            cells = [cell for cell in mine if (cell.op, cell.which) == (op, which)]
            parts.append(_tables(each, op, which, sorted(cells, key=lambda cell: cell.series[each.name])))
    parts.append("\n".join(missing(run)))
    return "\n\n".join(parts).rstrip()


def _tables(each: series.Series, op: str, which: str, cells: list[Cell]) -> str:
    names = list(dict.fromkeys(entry.name for cell in cells for entry in cell.entries))
    ours = next((cell.ours.name for cell in cells if cell.ours is not None), None)
    title = (
        f"{op}, {'forward' if which == FORWARD else 'forward and backward'}, against {each.name}: {each.text}"
    )
    num_heads = [name.replace(" ", "\n", 1) for name in names]
    times, bytes_ = [], []
    for cell in cells:
        entries = {entry.name: entry for entry in cell.entries}
        first = [f"{cell.series[each.name]}", cell.shape.label]
        times.append([*first, *(_milliseconds(entries.get(name)) for name in names), _best(cell)])
        bytes_.append([*first, *(_megabytes(entries.get(name)) for name in names)])
    return "\n".join(
        [
            f"== {title} ({cells[0].dtype}, {cells[0].layout}) ==",
            table([each.name, "BxNxCxL", *num_heads, f"best peer /\n{ours}"], times),
            "",
            table([f"{each.name}", "extra MB of", *num_heads], bytes_),
        ]
    )


def _milliseconds(entry: Entry | None) -> str:
    if entry is None:
        return ""
    return f"{entry.median * 1e3:.3g}" if entry.timed else _why(entry)


def _megabytes(entry: Entry | None) -> str:
    if entry is None:
        return ""
    return f"{entry.extra_bytes / 1e6:.3g}" if entry.timed and entry.extra_bytes is not None else _why(entry)


def _why(entry: Entry) -> str:
    if entry.too_large is not None:
        return f"{entry.too_large / 1e9:.3g} GB"
    return SHORT.get(entry.status, "-")


def _best(cell: Cell) -> str:
    best = cell.best_peer
    return "-" if cell.best_ratio is None or best is None else f"{cell.best_ratio:.2f} ({best.name})"

"""``python -m benchmarks scaling``: time and memory against each size, one at a time around a base shape.

What a contender would need is predicted. One that does not fit into the memory is not run: its row has the
bytes that it needs, and a cross in the plots.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from benchmarks import shapes
from benchmarks.processes import CPU, Plan, UsageError, cpus_of
from benchmarks.shapes import OPS, Case, Point
from benchmarks.timing import QUICK, Budget

BUDGET = Budget(seconds=0.3, least=5, most=100, patience=3.0)
# Elements of a map that may need all memory there is.
_HUGE = 1 << 29


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The mode's options."""
    add = parser.add_argument
    add("--only", nargs="+", choices=[*shapes.SERIES], default=[*shapes.SERIES], metavar="SERIES")
    add("--op", nargs="+", choices=OPS, default=list(OPS))
    add("--pass", nargs="+", choices=shapes.PASSES, default=list(shapes.PASSES), dest="passes")
    add("--dtype", choices=shapes.GPU_DTYPES, help="default: fp32 on a CPU, bf16 on a GPU")
    add("--layout", choices=shapes.LAYOUTS, default=shapes.LAYOUTS[0])
    add("--threads", type=int, metavar="T", help="of a CPU; default: all that may be used")
    add("--peers", nargs="*", metavar="NAME", help="default: those that are not compiled")
    add("--compile", action="store_true", help="also those that are, which takes hours")
    add("--memory", type=float, metavar="GB", help="that a contender may need; default: 0.8 of what is free")


def plans(options: argparse.Namespace) -> list[Plan]:
    """A process for each number of threads, and for each huge case.

    Raises:
        UsageError: bad numbers of threads or bytes, or a peer is not known.
    """
    from benchmarks import memory, peers

    cpus, on_gpu = cpus_of(options.threads), options.device != CPU
    if options.memory is not None and not options.memory > 0:
        raise UsageError(f"--memory must be above 0, got {options.memory}")
    most = None if on_gpu else memory.limit()
    kind, dtype, threads = ("cuda", "bf16", None) if on_gpu else (CPU, "fp32", len(cpus))
    chosen = peers.chosen(options.peers, kind, plain=not options.compile)
    kinds = {"quick": options.quick, "only": options.only, "ops": options.op}
    series = shapes.points(kind, options.dtype or dtype, options.layout, threads, **kinds)

    def spec(point: Point) -> dict[str, object]:
        return point.case.spec(chosen, options.passes, mode="scaling", series=series[point])

    return [
        Plan(
            problems=[spec(Point(case, threads)) for case in cases],
            cpus=cpus[:threads],
            device=options.device,
            budget=QUICK if options.quick else BUDGET,
            quick=options.quick,
            memory_bytes=most if options.memory is None else int(options.memory * 1e9),
        )
        for cases, threads in processes(series)
    ]


def processes(points: Iterable[Point]) -> list[tuple[list[Case], int | None]]:
    """Cases that share a process, and its threads: those of so many threads, but each huge one alone.

    After malloc has run out of memory, later calls find no warm pages.
    """
    found: dict[tuple[int, Case | None], list[Case]] = {}
    for case, threads in points:
        batch, pixels, channels, _ = case.shape.sizes
        alone = case if batch * pixels * channels > _HUGE else None
        found.setdefault((threads or 0, alone), []).append(case)
    ordered = sorted(found.items(), key=lambda item: (item[0][0], item[0][1] is not None))
    return [(cases, threads or None) for (threads, _), cases in ordered]

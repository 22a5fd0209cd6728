"""``python -m benchmarks overhead``: what a call costs where there is next to nothing to compute.

And what the first call of a process costs, as a figure of its own (:mod:`benchmarks.first_call`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import cases, first_call, records, running
from benchmarks.cases import FORWARD, STACK, Case, Shape
from benchmarks.records import Cell, Run
from benchmarks.running import CPU, Finished
from benchmarks.tables import table, wrapped
from benchmarks.timing import Budget

if TYPE_CHECKING:
    from benchmarks.compare import Before

MODE = "overhead"
# So small that computing takes a microsecond or two.
SHAPES = (Shape(1, 4, 4, 32, 4), Shape(1, 14, 14, 64, 8))
STACK_SHAPE = Shape(1, 4, 4, 64, 4)
# Plain PyTorch, and what is usually said to help.
PEERS = ("eager", "folded", "sdpa", "compile eager", "compile folded")
# Calls in one turn of the clock, and turns.
REPEAT, QUICK_REPEAT = 100, 5
BUDGET = Budget(seconds=1.0, least=15, most=60, far_behind=1e9, behind=1e9)
QUICK_BUDGET = Budget(seconds=0.0, least=3, most=3, few=3, far_behind=1e9, behind=1e9)
PROCESSES, QUICK_PROCESSES = 5, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    ops = [*cases.OPS, STACK]
    parser.add_argument(
        "--quick", action="store_true", help="few calls, one op, one first call of each: a smoke test"
    )
    parser.add_argument("--op", nargs="+", choices=ops, default=ops)
    parser.add_argument(
        "--device", type=running.device_name, default=CPU, help="cpu, cuda or cuda:N; default: %(default)s"
    )
    parser.add_argument("--dtype", choices=cases.GPU_DTYPES, help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help=f"default: {', '.join(PEERS)}")
    parser.add_argument("--no-first-call", action="store_true", help="without fresh processes")


def main(options: argparse.Namespace, before: Before | None = None) -> Finished:
    """Run, save, print. 1 where a result of ours was wrong or a case could not be measured.

    Raises:
        UsageError: the arguments cannot be carried out.
        Incomparable: the run cannot be compared with that before.
    """
    from benchmarks.peers_gpu import ABSENT, ALL_NAMES

    peers = options.peers
    if peers is None:
        # Compiling takes longer than all the rest of a quick run.
        peers = [name for name in PEERS if not (options.quick and name.startswith("compile "))]
    on_gpu = options.device != CPU
    dtype = options.dtype or ("bf16" if on_gpu else "fp32")
    todo = chosen(options.op, dtype, quick=options.quick)
    plan: dict[str, Any] = {
        "passes": list(cases.PASSES),
        "peers": running.known_peers(peers, ALL_NAMES),
        "budget": (QUICK_BUDGET if options.quick else BUDGET)._asdict(),
        # Ceilings mean nothing here, and are measured by small calls.
        "quick": True,
        "device": options.device if on_gpu else None,
        "repeat": QUICK_REPEAT if options.quick else REPEAT,
    }
    # One thread: two would only wait for each other.
    cpus = running.cpus_of(1)
    settings = {"mode": MODE, **plan, "quick": options.quick, "dtype": dtype, "threads": 1, "absent": ABSENT}
    run = Run(running.machine_of(options.device), settings, [], complete=False)

    def mark(cell: Cell) -> None:
        cell.floor = None  # of a call that computes nothing there is none

    if before is not None:
        before.accept(run)
    full = running.is_full(options, add_arguments)
    status, output = running.conduct(run, [({**plan, "cases": todo}, cpus)], options, full=full, mark=mark)
    if status == 0 and not options.no_first_call:
        processes = QUICK_PROCESSES if options.quick else PROCESSES
        run.first_calls = first_call.measure(options.device, dtype, processes, cpus, quick=options.quick)
        run.problems += [f"{each.name}: {each.reason}" for each in run.first_calls if each.reason]
        records.save(run, output)
    print(render(run))
    print(f"\nwritten to {output}")
    compared = 0 if before is None else before.report(run)
    return Finished(status or running.verdict(run) or compared, output)


def chosen(ops: Sequence[str], dtype: str, *, quick: bool) -> list[Case]:
    """The cases; of a quick run one shape."""
    found = [
        Case(op, shape, dtype, "channels_last")
        for op in ops
        if op != STACK
        for shape in (SHAPES[:1] if quick else SHAPES)
    ]
    if STACK in ops:
        found.append(Case(STACK, STACK_SHAPE, dtype, "channels_last", parts=1))
    return found


def render(run: Run) -> str:
    """A table of calls, and one of first calls."""
    from benchmarks.report import head, missing

    return "\n\n".join(filter(None, [head(run), _calls(run), _first_calls(run), "\n".join(missing(run))]))


def _calls(run: Run) -> str:
    names = list(dict.fromkeys(entry.name for cell in run.cells for entry in cell.entries))
    rows = []
    for cell in run.cells:
        entries = {entry.name: entry for entry in cell.entries}
        row = [cell.op if cell.op != STACK else "stack of 1", cell.shape.label]
        row.append("without" if cell.which == FORWARD else "with")
        for name in names:
            entry = entries.get(name)
            known = entry is not None and entry.timed
            row.append("" if entry is None else f"{entry.median * 1e6:.1f}" if known else entry.status)
        rows.append(row)
    columns = ["us per call", "BxNxCxL", "gradients", *(name.replace(" ", "\n", 1) for name in names)]
    return "\n".join(
        [
            table(columns, rows),
            wrapped(
                f"Medians; each time is the mean of {run.settings['repeat']} calls in a row, on one thread. "
                "Without gradients: forward. With: forward and backward to all operands."
            ),
        ]
    )


def _first_calls(run: Run) -> str | None:
    if not run.first_calls:
        return None
    rows = []
    for each in run.first_calls:
        row = [each.name, "cold" if each.cold else "warm"]
        for seconds, unit in (
            (each.import_torch, 1.0),
            (each.import_vt_fast, 1e-3),
            (each.first, 1e-3),
            (each.second, 1e-3),
        ):
            row.append(f"{statistics.median(seconds) / unit:.3g}" if seconds else "-")
        rows.append(row)
    columns = ["first call", "caches of\ncompilers", "import\ntorch s", "import\nvt_fast ms", "first\nms"]
    one = run.first_calls[0]
    return "\n".join(
        [
            table([*columns, "second\nms"], rows),
            wrapped(
                f"{one.op} {one.shape.label} {one.dtype}, forward, each in fresh processes: medians. Cold: "
                "with empty folders for what Triton and torch.compile keep."
            ),
        ]
    )

"""The command line: ``python -m benchmarks cpu``, ``show`` and ``plot``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import cases, launch, machine, records
from benchmarks.timing import QUICK, Budget

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0; 1 where a result of ours was wrong or a case could not be measured; 2 for bad arguments;
    130 after Ctrl-C, with what was measured until then saved.
    """
    options = _parser().parse_args(arguments)
    if options.command == "cpu":
        return _cpu(options)
    if options.command == "plot":
        from benchmarks.plot import plot

        print(plot(records.load(options.file), options.file.with_suffix(".png")))
        return 0
    return _show(records.load(options.file))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="vt_fast against its floor and peers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cpu = commands.add_parser("cpu", help="measure on this machine's CPU")
    labels = [shape.label for shape in cases.SHAPES]
    cpu.add_argument(
        "--quick", action="store_true", help="tiny shapes, few rounds, nothing compiled: a smoke test"
    )
    cpu.add_argument("--threads", type=int, nargs="+", metavar="T", help="default: 1 and 2")
    cpu.add_argument("--dtype", nargs="+", choices=cases.DTYPES, default=list(cases.DTYPES))
    cpu.add_argument("--op", nargs="+", choices=[*cases.OPS, cases.STACK], default=[*cases.OPS, cases.STACK])
    cpu.add_argument("--shape", nargs="+", choices=labels, metavar="BxNxCxL", help=f"of {', '.join(labels)}")
    cpu.add_argument("--layout", nargs="+", choices=cases.LAYOUTS, default=list(cases.LAYOUTS))
    cpu.add_argument("--pass", nargs="+", choices=cases.PASSES, default=list(cases.PASSES), dest="passes")
    cpu.add_argument(
        "--peers", nargs="*", metavar="NAME", help="by name, see benchmarks/peers.py; default: all"
    )
    cpu.add_argument(
        "--seconds", type=float, help="for each cell; the default is that of benchmarks/timing.py"
    )
    cpu.add_argument("--output", type=Path, metavar="FILE", help="default: a file in benchmarks/results")
    for name, text in (("show", "print a result file again"), ("plot", "draw a result file")):
        command = commands.add_parser(name, help=text)
        command.add_argument("file", type=Path, metavar="FILE")
    return parser


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """What the children are told, apart from their CPUs."""
    shapes: tuple[cases.Shape, ...] = cases.QUICK_SHAPES if options.quick else cases.SHAPES
    if options.shape:
        shapes = tuple(shape for shape in cases.SHAPES if shape.label in options.shape)
    stack = cases.QUICK_STACK_SHAPE if options.quick else cases.STACK_SHAPE
    peers = options.peers
    if options.quick and peers is None:
        # Compiling takes longer than all the rest of a quick run.
        peers = ["eager", "folded", "transposed", "sdpa"]
    budget = QUICK if options.quick else Budget()
    if options.seconds is not None:
        budget = budget._replace(seconds=options.seconds)
    return {
        "cases": list(cases.select(shapes, stack, options.op, options.dtype, options.layout)),
        "passes": options.passes,
        "peers": peers,
        "budget": budget._asdict(),
        "quick": options.quick,
    }


def _cpu(options: argparse.Namespace) -> int:
    cpus = launch.available_cpus()
    threads = options.threads or [count for count in (1, 2) if count <= len(cpus)]
    if not all(1 <= count <= len(cpus) for count in threads):
        print(f"error: --threads must be from 1 to {len(cpus)}, the CPUs that may be used", file=sys.stderr)
        return 2
    todo = plan(options)
    unknown = _unknown_peers(todo["peers"])
    if unknown:
        print(
            f"error: --peers must be names from benchmarks/peers.py, got {', '.join(unknown)}",
            file=sys.stderr,
        )
        return 2
    output = options.output or RESULTS / ("cpu.json" if _is_full(options) else "cpu-partial.json")
    settings = {name: value for name, value in todo.items() if name != "cases"}
    run = records.Run(machine.describe(), {**settings, "threads": threads}, [], complete=False)
    start = time.monotonic()
    processes = []
    status = 0
    try:
        with tqdm(total=len(todo["cases"]) * len(threads), unit="case", dynamic_ncols=True) as bar:
            for count in threads:
                for message in launch.messages(todo, cpus[:count]):
                    if "process" in message:
                        processes.append(message["process"])
                        continue
                    bar.set_description(f"{count} thr. {message['case']}")
                    bar.update()
                    run.cells += [records.cell_from(cell) for cell in message.get("cells", [])]
                    run.problems += [message["problem"]] if "problem" in message else []
        run.complete = True
    except KeyboardInterrupt:
        status = 130
    except RuntimeError as error:
        run.problems.append(str(error))
    run.settings |= {"processes": processes, "elapsed_seconds": time.monotonic() - start}
    records.save(run, output)
    shown = _show(run)
    print(f"\nwritten to {output} after {run.settings['elapsed_seconds']:.0f} s")
    return status or shown


def _unknown_peers(names: Sequence[str] | None) -> list[str]:
    from benchmarks.peers import NAMES

    return [name for name in names or () if name not in NAMES]


def _is_full(options: argparse.Namespace) -> bool:
    default = _parser().parse_args(["cpu"])
    given = {**vars(options), "output": None}
    return given == vars(default)


def _show(run: records.Run) -> int:
    from benchmarks import report, summary

    print(report.render(run))
    return 1 if run.problems or not run.cells or summary.ours_without_figure(run) else 0

"""The command line: ``python -m benchmarks cpu``, ``gpu``, ``models``, ``show``, ``report``, ``predict``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cases, launch, machine, records
from benchmarks.networks import command
from benchmarks.reporting import command as reporting
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
    if options.command == "gpu":
        return _gpu(options)
    if options.command == "models":
        return command.main(options)
    if options.command == "predict":
        return _predict(options)
    if options.command == "report":
        return reporting.main(options)
    if "networks" in json.loads(options.file.read_text()).get("settings", {}):
        print(command.show(options.file))
        return 0
    return _show(records.load(options.file))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="vt_fast against its floor and peers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cpu = commands.add_parser("cpu", help="measure on this machine's CPU")
    _add_selection(cpu, cases.SHAPES, cases.DTYPES)
    cpu.add_argument("--threads", type=int, nargs="+", metavar="T", help="default: 1 and 2")
    gpu = commands.add_parser("gpu", help="measure on a GPU")
    _add_selection(gpu, cases.GPU_SHAPES, cases.GPU_DTYPES)
    gpu.add_argument("--device", type=int, default=0, metavar="N", help="which GPU, default: 0")
    gpu.add_argument("--budget", type=_positive, metavar="MINUTES", help="stop then; default: no limit")
    gpu.add_argument("--tf32", action="store_true", help="let all sides multiply fp32 in TF32")
    gpu.add_argument("--max-autotune", action="store_true", help="also peers compiled with tuned kernels")
    gpu.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where that file goes")
    models = commands.add_parser("models", help="measure the paper's networks against those they replace")
    command.add_arguments(models)
    show = commands.add_parser("show", help="print a result file again")
    show.add_argument("file", type=Path, metavar="FILE")
    report = commands.add_parser("report", help="result files as an HTML page, Markdown and pictures")
    reporting.add_arguments(report, RESULTS / "report")
    predict = commands.add_parser(
        "predict", help="the Triton kernels' times by a model, beside measured ones"
    )
    predict.add_argument("--target", default="sm_90", help="the architecture; default: %(default)s")
    predict.add_argument(
        "--measured", type=Path, metavar="FILE", help="a result file of python -m benchmarks gpu"
    )
    return parser


def _predict(options: argparse.Namespace) -> int:
    from benchmarks import predictions

    try:
        table = predictions.rows(predictions.TABLE, options.target)
        run = None if options.measured is None else records.load(options.measured)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(predictions.render(table, run))
    return 0


def _add_selection(
    parser: argparse.ArgumentParser, shapes: Sequence[cases.Shape], dtypes: Sequence[str]
) -> None:
    labels = [shape.label for shape in shapes]
    ops = [*cases.OPS, cases.STACK]
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, few rounds, nothing compiled: a smoke test"
    )
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=list(dtypes))
    parser.add_argument("--op", nargs="+", choices=ops, default=ops)
    parser.add_argument(
        "--shape", nargs="+", choices=labels, metavar="BxNxCxL", help=f"of {', '.join(labels)}"
    )
    parser.add_argument("--layout", nargs="+", choices=cases.LAYOUTS, default=list(cases.LAYOUTS))
    parser.add_argument("--pass", nargs="+", choices=cases.PASSES, default=list(cases.PASSES), dest="passes")
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help='by name, see benchmarks/peers.py; on a GPU also "plain" for all that are not compiled; '
        "default: all",
    )
    parser.add_argument("--seconds", type=float, help="for each cell; the default is in benchmarks/README.md")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: a file in benchmarks/results")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


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


def _gpu(options: argparse.Namespace) -> int:
    from benchmarks import gpu

    # How long it may take and where it goes leaves nothing out.
    aside = {"output": None, "results": RESULTS, "device": 0, "budget": None}
    status, run, path = gpu.run(options, full=_is_full("gpu", options, aside))
    if run is None:
        return status
    shown = _show(run)
    print(f"\nwritten to {path} after {run.settings['elapsed_seconds']:.0f} s")
    return status or shown


def _cpu(options: argparse.Namespace) -> int:
    from tqdm import tqdm

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
    full = _is_full("cpu", options, {"output": None})
    output = options.output or RESULTS / ("cpu.json" if full else "cpu-partial.json")
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


def _is_full(command: str, options: argparse.Namespace, aside: Mapping[str, Any]) -> bool:
    """Whether the options are those of a run of everything, whatever those are that are put aside."""
    return {**vars(options), **aside} == vars(_parser().parse_args([command]))


def _show(run: records.Run) -> int:
    from benchmarks import report, summary

    print(report.render(run))
    return 1 if run.problems or not run.cells or summary.ours_without_figure(run) else 0

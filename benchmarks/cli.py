"""The command line: what measures, and what reads result files; see README.md beside this."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import cases, documents, launch, machine, origins, overhead, records, running, scaling
from benchmarks.networks import command
from benchmarks.reporting import command as reporting
from benchmarks.timing import QUICK, Budget

if TYPE_CHECKING:
    from benchmarks.compare import Before

RESULTS = Path(__file__).resolve().parent / "results"
MEASURING = ("cpu", "gpu", "models", "scaling", "overhead")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0; 1 where a result of ours was wrong, a case could not be measured, or something has become
    slower than in the file that it is compared with; 2 for bad arguments; 130 after Ctrl-C, with what was
    measured until then saved.
    """
    options = _parser().parse_args(arguments)
    if options.command in MEASURING:
        return _measure(options)
    if options.command == "compare":
        return _compare(options)
    if options.command == "schema":
        return _schema(options)
    if options.command == "list":
        from benchmarks import listing

        print(listing.render())
        return 0
    if options.command == "predict":
        return _predict(options)
    if options.command == "report":
        return reporting.main(options)
    settings = json.loads(options.file.read_text()).get("settings", {})
    if "networks" in settings:
        print(command.show(options.file))
        return 0
    for mode in (scaling, overhead):
        if settings.get("mode") == mode.MODE:
            print(mode.render(records.load(options.file)))
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
    scaling_parser = commands.add_parser("scaling", help="time and memory against each size, one at a time")
    scaling.add_arguments(scaling_parser)
    overhead_parser = commands.add_parser(
        "overhead", help="what a call costs at tiny shapes, and the first one of a process"
    )
    overhead.add_arguments(overhead_parser)
    commands.add_parser("list", help="shapes and where they come from, peers and which of them are absent")
    for measuring in (cpu, gpu, models, scaling_parser, overhead_parser):
        measuring.add_argument("--compare", type=Path, metavar="OLD", help="and then with this result file")
        measuring.add_argument("--force", action="store_true", help="even if OLD is of another machine")
    show = commands.add_parser("show", help="print a result file again")
    show.add_argument("file", type=Path, metavar="FILE")
    report = commands.add_parser("report", help="result files as an HTML page, Markdown and pictures")
    reporting.add_arguments(report, RESULTS / "report")
    compare = commands.add_parser("compare", help="what has become slower or faster by more than noise")
    compare.add_argument("new", type=Path, metavar="NEW")
    compare.add_argument("old", type=Path, metavar="OLD")
    compare.add_argument("--force", action="store_true", help="even if they are of different machines")
    compare.add_argument("--all", action="store_true", help="print every figure, those of peers too")
    schema = commands.add_parser("schema", help="hold result files against their schema, or print it")
    schema.add_argument("files", type=Path, nargs="*", metavar="FILE")
    schema.add_argument("--kind", choices=documents.KINDS, default=documents.CPU, help="which to print")
    predict = commands.add_parser(
        "predict", help="the Triton kernels' times by a model, beside measured ones"
    )
    predict.add_argument("--target", default="sm_90", help="the architecture; default: %(default)s")
    predict.add_argument(
        "--measured", type=Path, metavar="FILE", help="a result file of python -m benchmarks gpu"
    )
    return parser


def _measure(options: argparse.Namespace) -> int:
    """A command that measures. The file to compare with is read first: it may be the one to be written."""
    from benchmarks import compare
    from benchmarks.figures import Incomparable

    commands: dict[str, Callable[[argparse.Namespace, Before | None], int]]
    commands = {
        "cpu": _cpu,
        "gpu": _gpu,
        "models": command.main,
        "scaling": scaling.main,
        "overhead": overhead.main,
    }
    try:
        before = None if options.compare is None else compare.Before(options.compare, force=options.force)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        return commands[options.command](options, before)
    except Incomparable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _compare(options: argparse.Namespace) -> int:
    from benchmarks import compare

    try:
        return compare.main(options.new, options.old, force=options.force, everything=options.all)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _schema(options: argparse.Namespace) -> int:
    if not options.files:
        print(json.dumps(documents.schema(options.kind), indent=1))
        return 0
    status = 0
    for path in options.files:
        try:
            print(f"{path}: a {documents.kind_of(documents.read(path))} result")
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    return status


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
    labels = [shape.label for shape in dict.fromkeys([*shapes, *origins.REGISTRY])]
    ops = [*cases.OPS, cases.STACK]
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, few rounds, nothing compiled: a smoke test"
    )
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=list(dtypes))
    parser.add_argument("--op", nargs="+", choices=ops, default=ops)
    parser.add_argument(
        "--shape",
        nargs="+",
        choices=labels,
        metavar="BxNxCxL",
        help=f"of {', '.join(shape.label for shape in shapes)} (the default), or another one of those that "
        "python -m benchmarks list prints",
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
        shapes = origins.by_label(options.shape)
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


def _gpu(options: argparse.Namespace, before: Before | None) -> int:
    from benchmarks import gpu

    # How long it may take and where it goes leaves nothing out.
    aside = {"output": None, "results": RESULTS, "device": 0, "budget": None}
    status, run, path = gpu.run(options, full=_is_full("gpu", options, aside), before=before)
    if run is None:
        return status
    shown = _show(run)
    print(f"\nwritten to {path} after {run.settings['elapsed_seconds']:.0f} s")
    compared = 0 if before is None else before.report(run)
    return status or shown or compared


def _cpu(options: argparse.Namespace, before: Before | None) -> int:
    from benchmarks.peers_gpu import ABSENT

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
    settings |= {"threads": threads, "absent": ABSENT}
    run = records.Run(machine.describe(), settings, [], complete=False)
    if before is not None:
        before.accept(run)
    status = running.conduct(run, [(todo, cpus[:count]) for count in threads], output)
    shown = _show(run)
    print(f"\nwritten to {output} after {run.settings['elapsed_seconds']:.0f} s")
    compared = 0 if before is None else before.report(run)
    return status or shown or compared


def _unknown_peers(names: Sequence[str] | None) -> list[str]:
    from benchmarks.peers import NAMES

    return [name for name in names or () if name not in NAMES]


def _is_full(command: str, options: argparse.Namespace, aside: Mapping[str, Any]) -> bool:
    """Whether the options are those of a run of everything, whatever those are that are put aside."""
    aside = {**aside, "compare": None, "force": False}
    return {**vars(options), **aside} == vars(_parser().parse_args([command]))


def _show(run: records.Run) -> int:
    from benchmarks import report

    print(report.render(run))
    return running.verdict(run)

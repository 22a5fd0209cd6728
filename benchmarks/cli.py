"""The command line: what measures, and what reads result files; see README.md beside this."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import (
    counter_records,
    counters,
    documents,
    everything,
    ops,
    overhead,
    records,
    running,
    scaling,
)
from benchmarks.networks import command
from benchmarks.reporting import command as reporting
from benchmarks.running import Finished, UsageError

MODES = {
    **ops.MODES,
    command.MODE: "the paper's networks against those that they replace",
    scaling.MODE: "time and memory against each size, one at a time",
    overhead.MODE: "what a call costs at tiny shapes, and the first one of a process",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0; 1 where a result of ours was wrong, a case could not be measured, or something has become
    slower than in the file that it is compared with; 2 for bad arguments; 130 after Ctrl-C, with what was
    measured until then saved.
    """
    options = _parser().parse_args(arguments)
    if options.command in MODES:
        return _measure(options)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "all": _all,
        "compare": _compare,
        counters.MODE: _counters,
        "schema": _schema,
        "list": _list,
        "predict": _predict,
        "report": reporting.main,
        "show": _show,
    }
    return commands[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="vt_fast against its floor and peers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    adds: dict[str, Callable[[argparse.ArgumentParser], None]] = {
        **{mode: partial(ops.add_arguments, mode=mode) for mode in ops.MODES},
        command.MODE: command.add_arguments,
        scaling.MODE: scaling.add_arguments,
        overhead.MODE: overhead.add_arguments,
    }
    for mode, text in MODES.items():
        measuring = commands.add_parser(mode, help=f"measure {text}")
        adds[mode](measuring)
        running.add_arguments(measuring)
    everything.add_arguments(commands.add_parser("all", help="all of these in turn, and a report of them"))
    counters.add_arguments(
        commands.add_parser(counters.MODE, help="read an NVIDIA GPU's counters of our kernels, by ncu")
    )
    commands.add_parser("list", help="shapes and where they come from, peers and which of them are absent")
    show = commands.add_parser("show", help="print a result file again")
    show.add_argument("file", type=Path, metavar="FILE")
    report = commands.add_parser("report", help="result files as an HTML page, Markdown and pictures")
    reporting.add_arguments(report, running.RESULTS / "report")
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


def _all(options: argparse.Namespace) -> int:
    try:
        return everything.main(options, _parser().parse_args, _measured)
    except UsageError as error:
        return _refuse(error)


def _measure(options: argparse.Namespace) -> int:
    try:
        with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
            status, path = _measured(options)
    except UsageError as error:
        return _refuse(error)
    if options.json:
        print(path.read_text(), end="")
    return status


def _measured(options: argparse.Namespace) -> Finished:
    """A command that measures. The file to compare with is read first: it may be the one to be written.

    Raises:
        UsageError: the arguments cannot be carried out, the file to compare with cannot be read, or it is of
            another machine.
    """
    from benchmarks import compare
    from benchmarks.figures import Incomparable

    mains = {
        **dict.fromkeys(ops.MODES, ops.main),
        command.MODE: command.main,
        scaling.MODE: scaling.main,
        overhead.MODE: overhead.main,
    }
    try:
        before = None if options.compare is None else compare.Before(options.compare, force=options.force)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        return mains[options.command](options, before)
    except Incomparable as error:
        raise UsageError(str(error)) from error


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _compare(options: argparse.Namespace) -> int:
    from benchmarks import compare

    try:
        return compare.main(options.new, options.old, force=options.force, everything=options.all)
    except (OSError, ValueError) as error:
        return _refuse(error)


def _counters(options: argparse.Namespace) -> int:
    try:
        return counters.main(options)
    except UsageError as error:
        return _refuse(error)


def _schema(options: argparse.Namespace) -> int:
    if not options.files:
        print(json.dumps(documents.schema(options.kind), indent=1))
        return 0
    status = 0
    for path in options.files:
        try:
            print(f"{path}: a {documents.kind_of(documents.read(path))} result")
        except (OSError, ValueError) as error:
            _refuse(error)
            status = 1
    return status


def _list(options: argparse.Namespace) -> int:
    from benchmarks import listing

    print(listing.render())
    return 0


def _predict(options: argparse.Namespace) -> int:
    from benchmarks import predictions

    try:
        table = predictions.rows(predictions.TABLE, options.target)
        run = None if options.measured is None else records.load(options.measured)
    except (OSError, ValueError) as error:
        return _refuse(error)
    print(predictions.render(table, run))
    return 0


def _show(options: argparse.Namespace) -> int:
    try:
        settings = documents.read(options.file).get("settings", {})
    except (OSError, ValueError) as error:
        return _refuse(error)
    if "networks" in settings:
        print(command.show(options.file))
        return 0
    if counters.MODE in settings:
        print(counters.render(counter_records.load(options.file)))
        return 0
    run = records.load(options.file)
    modes = {scaling.MODE: scaling.render, overhead.MODE: overhead.render}
    print(modes.get(settings.get("mode"), ops.render)(run))
    return running.verdict(run)

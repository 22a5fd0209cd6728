"""The command line: ``python -m vt_fast info``, ``demo``, ``paper`` and ``tune``."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vt_fast.version import __version__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vt-fast", description="Visual Transformers for PyTorch.")
    parser.add_argument("--version", action="version", version=f"vt_fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,demo,paper,tune}")

    info = commands.add_parser("info", help="versions, devices, and each backend with yes, or no and why")
    info.add_argument("--json", action="store_true", help="print the report as JSON")

    demo = commands.add_parser("demo", help="train, draw and measure on real pictures")
    demo.add_argument(
        "pictures",
        nargs="*",
        type=Path,
        metavar="PICTURE",
        help="your own pictures, instead of the two samples",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("demo_output"), metavar="DIR", help="default: %(default)s"
    )
    demo.add_argument(
        "--quick", action="store_true", help="a few seconds of everything; the figures mean nothing"
    )

    paper = commands.add_parser("paper", help="count the networks of the paper's tables, beside its print")
    paper.add_argument("--only", metavar="NAME", help="rows whose name holds this; default: all")
    paper.add_argument(
        "--output", type=Path, default=Path("paper_output"), metavar="DIR", help="default: %(default)s"
    )

    tune = commands.add_parser("tune", help="time launch settings of the Triton kernels on this GPU")
    tune.add_argument("--op", nargs="+", metavar="OP", help="tokenize, project_backward, ...; default: all")
    tune.add_argument("--dtype", nargs="+", default=["bf16"], metavar="DTYPE", help="bf16, fp16 or fp32")
    tune.add_argument("--layout", nargs="+", metavar="LAYOUT", help="channels or pixels; default: both")
    tune.add_argument(
        "--shape",
        nargs="+",
        type=_shape,
        metavar="BxNxCxL",
        help="of your own maps; default: some usual ones",
    )
    tune.add_argument("--minutes", type=float, help="begin no other case after so long")
    tune.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="processes that compile ahead of timing; default: one less than there are processors",
    )
    tune.add_argument(
        "--output",
        type=Path,
        default=Path("vt_fast_settings.json"),
        metavar="FILE",
        help="default: %(default)s",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(word) for word in text.split("x"))
    if len(sizes) != 4 or min(sizes) < 1:
        raise ValueError
    return sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 for something the user has to put right.

    130 after Ctrl-C, and 141 where nobody reads the output any more, both as shells have it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may have characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(_parser().parse_args(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes at exit and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _run(options: argparse.Namespace) -> int:
    # Imported here: `info` must work where torch does not import, and the demo's extra may be missing.
    if options.command == "info":
        from vt_fast import info

        return info.main(as_json=options.json)
    if options.command == "tune":
        return _tune(options)
    if options.command == "paper":
        return _paper(options)
    from vt_fast.demo import run

    return run(options.pictures, options.output, quick=options.quick)


def _paper(options: argparse.Namespace) -> int:
    from vt_fast import paper

    try:
        return paper.main(options.output, options.only)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _tune(options: argparse.Namespace) -> int:
    from vt_fast import tune

    try:
        todo = tune.cases(options.op, options.dtype, options.layout, options.shape or tune.SHAPES)
        return tune.main(todo, options.output, options.minutes, options.jobs)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

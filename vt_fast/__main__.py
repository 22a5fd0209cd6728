"""The command line: ``python -m vt_fast check``, ``demo``, ``info``, ``paper`` and ``tune``."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from vt_fast.version import __version__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vt-fast", description="Visual Transformers for PyTorch.")
    parser.add_argument("--version", action="version", version=f"vt_fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,check,demo,paper,tune}")

    info = commands.add_parser("info", help="versions, devices, and whether each backend can run here")
    info.add_argument("--json", action="store_true", help="print the report as JSON")

    check = commands.add_parser("check", help="whether the kernels are right on this machine")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.add_argument(
        "--seconds", type=_seconds, default=50.0, help="begin no call after this time; default: %(default)s"
    )

    check.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="BACKEND",
        help="fail unless this backend has run here; may be given several times",
    )

    demo = commands.add_parser(
        "demo", help="train, draw and measure on real pictures (from a source checkout)"
    )
    demo.add_argument(
        "pictures",
        nargs="*",
        type=Path,
        metavar="PICTURE",
        help="your own pictures; default: two samples",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("demo_output"), metavar="DIR", help="default: %(default)s"
    )
    demo.add_argument(
        "--quick", action="store_true", help="a smoke test of a few seconds; its numbers mean nothing"
    )

    paper = commands.add_parser(
        "paper", help="count MACs and parameters of the paper's networks (from a source checkout)"
    )
    paper.add_argument("--only", metavar="NAME", help="only rows whose name contains this; default: all")
    paper.add_argument(
        "--output", type=Path, default=Path("paper_output"), metavar="DIR", help="default: %(default)s"
    )

    tune = commands.add_parser("tune", help="find fast launch settings of the kernels on this GPU")
    tune.add_argument("--backend", choices=["cuda", "triton"], default="triton", help="default: %(default)s")
    tune.add_argument("--op", nargs="+", metavar="OP", help="tokenize, project_backward, ...; default: all")
    tune.add_argument("--dtype", nargs="+", default=["bf16"], metavar="DTYPE", help="bf16, fp16 or fp32")
    tune.add_argument("--layout", nargs="+", metavar="LAYOUT", help="channels or pixels; default: both")
    tune.add_argument(
        "--shape",
        nargs="+",
        type=_shape,
        metavar="BxNxCxL",
        help="shapes of your maps; default: common ones",
    )
    tune.add_argument("--minutes", type=float, help="start no new case after this time")
    tune.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="processes that compile ahead of timing; default: number of processors - 1",
    )
    tune.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: vt_fast_settings.json, or vt_fast_cuda_settings.json",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return number


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(word) for word in text.split("x"))
    except ValueError:
        sizes = ()
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be four sizes, such as 8x784x256x16, got {text}")
    return sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 for success, 2 for an error that the user can fix, 130 after Ctrl-C, and 141 if the reader of the output
    has closed it; the last two are what shells report.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names may have characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(_parser().parse_args(arguments))
        if sys.stdout is not None:  # it is None where the caller has closed it
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes at exit, which would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _run(options: argparse.Namespace) -> int:
    # Imported here, because `info` must work even if torch does not import.
    if options.command == "info":
        from vt_fast import info

        return info.main(as_json=options.json)
    if options.command == "check":
        try:
            from vt_fast import self_test
        except (ImportError, OSError) as error:
            from vt_fast import info

            info.main(as_json=options.json)
            print(f"error: nothing can be checked: {info.cause(error)}", file=sys.stderr)
            return 1
        return self_test.main(as_json=options.json, seconds=options.seconds, required=options.require)
    if options.command == "tune":
        return _tune(options)
    if options.command == "paper":
        return _paper(options)
    return _demo(options)


def _demo(options: argparse.Namespace) -> int:
    demo = _from_checkout("examples/demo", "demo", "make demo")
    if demo is None:
        return 2
    status: int = demo.run(options.pictures, options.output, quick=options.quick)
    return status


def _paper(options: argparse.Namespace) -> int:
    paper = _from_checkout("tools/paper", "tools.paper", "python -m vt_fast paper")
    if paper is None:
        return 2
    try:
        status: int = paper.main(options.output, options.only)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def _from_checkout(place: str, module: str, command: str) -> ModuleType | None:
    """Import a module that lies beside the package in a checkout and is not installed.

    Args:
        place: its folder in a checkout.
        module: its name.
        command: what to run in a checkout.

    Returns:
        The module, or None after an error message if this is not a checkout.
    """
    folder = Path(__file__).resolve().parents[1] / place
    if not (folder / "__init__.py").is_file():
        name = command.split()[-1]
        print(
            f"error: `{name}` needs a source checkout of vt_fast ({place}): clone the repository and run "
            f"`{command}` there",
            file=sys.stderr,
        )
        return None
    path = str(folder.parents[module.count(".")])
    if path not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module(module)


def _tune(options: argparse.Namespace) -> int:
    from vt_fast import tune

    try:
        todo = tune.cases(options.op, options.dtype, options.layout, options.shape or tune.SHAPES)
        if options.backend == "cuda":
            return tune.main_cuda(todo, options.output or Path("vt_fast_cuda_settings.json"), options.minutes)
        output = options.output or Path("vt_fast_settings.json")
        return tune.main(todo, output, options.minutes, options.jobs)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``python -m tools.cuda resources`` and ``model``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from native_build import cuda
from tools.cuda import predictions, resources


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 1 for a faulty kernel or a missing tool."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int | None = options.run(options)
        return status or 0
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.cuda", description=__doc__)
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--arch", default="90a", help="an architecture that nvcc knows; default: 90a")
    shared.add_argument("--output", type=Path, metavar="FILE")

    command = commands.add_parser("resources", parents=[shared], help="what nvcc makes of the kernels")
    command.set_defaults(run=_resources)
    command.add_argument("--ops", nargs="+", choices=cuda.OPS, help="default: those of the committed table")
    command.add_argument("--types", nargs="+", choices=cuda.TYPES, help="default: likewise")
    command.add_argument("--check", action="store_true", help="check the kernels, and write no table")

    command = commands.add_parser("model", parents=[shared], help="predicted times, from the committed table")
    command.set_defaults(run=_model)
    return parser


def _resources(options: argparse.Namespace) -> int:
    part = options.ops is not None or options.types is not None
    new = not resources.table(options.arch).exists()
    if part and not options.check and options.output is None and not new:
        raise ValueError("`--output` must be given for a part of the table")
    return resources.run(options.arch, options.ops, options.types, check=options.check, output=options.output)


def _model(options: argparse.Namespace) -> None:
    found = predictions.rows(options.arch)
    results.write(
        options.output or predictions.table(options.arch),
        {"note": "a model, not a measurement"},
        predictions.COLUMNS,
        found,
    )
    print(predictions.render(found))


if __name__ == "__main__":
    sys.exit(main())

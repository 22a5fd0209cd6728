"""The command line: ``python -m tools.triton offline`` and ``predict``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.triton import offline, predictions, setting_tables
from tools.triton.gpus import GPUS
from vt_fast.backends.triton.samples import KERNELS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 1 if something is wrong with a kernel."""
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
    parser = argparse.ArgumentParser(prog="python -m tools.triton", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("offline", help="compile for GPUs that are not here")
    command.add_argument("--op", nargs="+", choices=KERNELS, default=list(KERNELS))
    command.add_argument("--output", type=Path, metavar="FILE")
    command.set_defaults(run=_offline)
    what = command.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="fewer kernels, and no table is written")
    what.add_argument("--choose", nargs="+", choices=GPUS, help="choose launch settings for these GPUs")
    command.add_argument("--gpu", nargs="+", choices=GPUS, help="default: all, with --check two")
    kinds = command.add_argument_group("with --choose")
    kinds.add_argument(
        "--kind", nargs="+", choices=["16", "ieee", "tf32"], default=["16"], help="default: 16"
    )
    kinds.add_argument("--trials", type=Path, metavar="FILE", help="of all versions of Triton; is added to")

    command = commands.add_parser("predict", help="print predicted times of the table's rows")
    command.set_defaults(run=_predict)
    command.add_argument("--gpu", default="sm_90", help="default: sm_90")
    command.add_argument("--measured", type=Path, metavar="FILE", help="the benchmark's results on a GPU")
    return parser


def _offline(options: argparse.Namespace) -> int:
    if options.choose:
        for gpu in options.choose:
            path = setting_tables.choose(gpu, options.op, options.kind, options.trials)
            print(f"written to {path}")
        return 0
    gpus = options.gpu or (offline.CHECKED_GPUS if options.check else list(GPUS))
    part = options.gpu is not None or len(options.op) < len(KERNELS)
    if part and not options.check and options.output is None:
        raise ValueError("`--output` must be given for a part of the table")
    return offline.run(gpus, options.op, check=options.check, output=options.output or offline.TABLE)


def _predict(options: argparse.Namespace) -> None:
    print(predictions.render(options.gpu, options.measured))


if __name__ == "__main__":
    sys.exit(main())

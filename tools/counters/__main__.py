"""The command line: ``python -m tools.counters``."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from tools.counters import launches
from tools.triton.calls import DTYPES, SHAPES, UNIT_STRIDES, Call
from vt_fast.backends.triton.samples import KERNELS


def main(arguments: Sequence[str] | None = None) -> int:
    """Read or show counters and return the exit status: 1 where profiling failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.counters", description="Read hardware counters of the kernels on an NVIDIA GPU."
    )
    parser.add_argument("--backend", choices=["triton", "cuda"], default="triton", help="default: triton")
    parser.add_argument("--op", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--layout", nargs="+", choices=UNIT_STRIDES, default=list(UNIT_STRIDES))
    shapes = ["x".join(map(str, shape)) for shape in SHAPES[:3]]
    parser.add_argument("--shape", nargs="+", metavar="BxNxCxL", default=shapes)
    parser.add_argument("--output", type=Path, metavar="FILE")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the counters in a file instead")
    options = parser.parse_args(arguments)
    try:
        if options.show:
            print(launches.render(results.read(options.show)[1]))
            return 0
        combined = itertools.product(options.op, options.dtype, options.layout, options.shape)
        launches.run([Call.of(*words) for words in combined], options.backend, options.output)
        return 0
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

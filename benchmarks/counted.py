"""Calls to be looked at by a profiler: ``python -m benchmarks.counted FILE OP DTYPE LAYOUT SHAPE ...``.

Each is made twice, the second time between the start and the stop of CUDA's profiler; a line of JSON in FILE
names each kernel of ours that was launched there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.compiled import Launch
from benchmarks.operands import TORCH_DTYPES
from vt_fast.backends.triton.ahead import Request
from vt_fast.backends.triton.samples import sample
from vt_fast.backends.triton.schedule import observed


def main(arguments: Sequence[str]) -> int:
    """Make all calls."""
    path, *words = arguments
    with Path(path).open("w") as file:
        for op, dtype, layout, shape in zip(*(words[start::4] for start in range(4)), strict=True):
            sizes = tuple(int(size) for size in shape.split("x"))
            call = sample(op, TORCH_DTYPES[dtype], layout, sizes, "cuda")  # type: ignore[arg-type]
            call()
            torch.cuda.synchronize()
            launched: list[Launch] = []
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
            with observed(lambda *given, found=launched: found.append(_launch(*given))):
                call()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
            for each in launched:
                about = {"op": op, "dtype": dtype, "layout": layout, "shape": shape}
                line = about | {"kernel": each.kernel, "setting": each.setting, "programs": each.programs}
                file.write(json.dumps(line) + "\n")
            del call
            torch.cuda.empty_cache()
    return 0


def _launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
) -> Launch:
    """Launch it, as nothing is while launches are observed."""
    kernel[grid](*arguments, **constants)
    return Launch("", Request.of(kernel, arguments, constants), grid[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

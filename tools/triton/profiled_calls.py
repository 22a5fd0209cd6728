"""Calls for a profiler to look at: ``python -m tools.triton.profiled_calls FILE [OP DTYPE LAYOUT SHAPE]...``.

Each is made twice, the second time between the start and the stop of CUDA's profiler. FILE gets a line of
JSON for each of our kernels that was launched there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tools.triton.calls import Call, Launch
from vt_fast.backends.triton.schedule import observed


def main(arguments: Sequence[str]) -> None:
    """Make the calls."""
    path, *words = arguments
    with Path(path).open("w") as file:
        for each in zip(*[iter(words)] * 4, strict=True):
            call = Call.of(*each)
            for launch in profiled(call):
                line = {"kernel": launch.kernel, "setting": launch.setting, "programs": launch.programs}
                file.write(json.dumps(call.words | line) + "\n")


def profiled(call: Call) -> list[Launch]:
    """Call twice, the second time under the profiler; return what that launched."""
    launched: list[Launch] = []

    def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: Any) -> None:
        kernel[grid](*arguments, **constants)  # an observed launch does nothing itself
        launched.append(Launch.of(kernel, grid, arguments, constants))

    run = call.on("cuda")
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    with observed(launch):
        run()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
    del run
    torch.cuda.empty_cache()
    return launched


if __name__ == "__main__":
    main(sys.argv[1:])

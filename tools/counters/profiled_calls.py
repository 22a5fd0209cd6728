"""Calls for a profiler to look at.

``python -m tools.counters.profiled_calls BACKEND FILE [OP DTYPE LAYOUT SHAPE]...``: each call is made twice,
the second time between the start and the stop of CUDA's profiler. FILE gets a line of JSON for each Triton
kernel that was launched there; of CUDA kernels, the profiler knows the settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tools.triton.calls import Call, Launch
from vt_fast.backends.cuda import tuning
from vt_fast.backends.triton.schedule import observed


def main(arguments: Sequence[str]) -> None:
    """Make the calls."""
    backend, path, *words = arguments
    calls = [Call.of(*each) for each in zip(*[iter(words)] * 4, strict=True)]
    with Path(path).open("w") as file:
        for call in calls:
            if backend == "cuda":
                profile(call.on("cuda", tuning.Calls()))
                continue
            for launch in profiled(call):
                line = {"kernel": launch.kernel, "setting": launch.setting, "programs": launch.programs}
                file.write(json.dumps(call.words | line) + "\n")


def profile(run: Callable[[], Any]) -> None:
    """Call twice, the second time under the profiler."""
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


def profiled(call: Call) -> list[Launch]:
    """Profile a call of the Triton kernels, and return what its second run launched."""
    launched: list[Launch] = []

    def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: Any) -> None:
        kernel[grid](*arguments, **constants)  # an observed launch does nothing itself
        launched.append(Launch.of(kernel, grid, arguments, constants))

    run = call.on("cuda")  # of a backward, this runs the forward
    with observed(launch):
        profile(run)
    return launched[len(launched) // 2 :]


if __name__ == "__main__":
    main(sys.argv[1:])

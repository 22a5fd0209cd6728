"""Our kernels of a run on a GPU, compiled before it by all processors: the GPU then waits for none of them.

Peers are not: some measure while they compile what is faster, which wants a GPU that does nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial

import torch

from benchmarks.cases import FORWARD, STACK, UNIT_STRIDES, Case
from benchmarks.operands import TORCH_DTYPES
from vt_fast.backends.triton import ahead
from vt_fast.backends.triton.samples import Shape, sample
from vt_fast.backends.triton.schedule import standing_in, traits


def requests(case: Case, passes: Iterable[str], device: torch.device) -> list[ahead.Request]:
    """What a case launches of our kernels; nothing for a stack, whose modules have options of their own."""
    if case.op == STACK:
        return []
    shape = (case.shape.batch, case.shape.pixels, case.shape.channels, case.shape.tokens)
    found: list[ahead.Request] = []
    with standing_in(traits(device)):
        for which in passes:
            op = case.op if which == FORWARD else f"{case.op}_backward"
            found += ahead.requests(
                partial(_call, op, TORCH_DTYPES[case.dtype], UNIT_STRIDES[case.layout], shape)
            )
    return found


def _call(op: str, dtype: torch.dtype, layout: str, shape: Shape) -> None:
    sample(op, dtype, layout, shape, "meta")()


def compile_all(cases: Sequence[Case], passes: Sequence[str], device: torch.device) -> None:
    """Wait until all is compiled that can be; what cannot fails again, and is named, where it is launched."""
    start = time.monotonic()
    with ahead.Ahead(ahead.current_target(), ahead.processes()) as compilers:
        those = [each for case in cases for each in requests(case, passes, device)]
        failed = ahead.finished(compilers.compile(those))
    print(
        f"compiled ahead in {time.monotonic() - start:.0f} s, {len(failed)} of {len(those)} launches failed",
        file=sys.stderr,
        flush=True,
    )

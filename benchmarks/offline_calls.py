"""Calls of the Triton backend on tensors without data, as on a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.compiled import Launch
from vt_fast.backends.triton.ahead import Request
from vt_fast.backends.triton.samples import Shape, sample
from vt_fast.backends.triton.schedule import observed


def recorded(op: str, dtype: torch.dtype, layout: str, shape: Shape) -> list[Launch]:
    """The kernels that a call would launch."""
    with observed(lambda *_: None):
        call = sample(op, dtype, layout, shape, "meta")
    return recorded_of(op, call)


def recorded_of(name: str, call: Callable[[], Any]) -> list[Launch]:
    """The kernels that ``call`` would launch, under a name."""
    found: list[Launch] = []

    def observe(
        kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        found.append(Launch(name, Request.of(kernel, arguments, constants), grid[0]))

    with observed(observe):
        call()
    return found

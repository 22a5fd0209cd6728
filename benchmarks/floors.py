"""The least that a job can take: compulsory bytes over the bandwidth, or FLOPs over the matrix rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import FORWARD

# Maps that must be read or written: forward, and backward alone. A backward reads x and the map's gradient
# where there is one, and writes dx; project_tokenize is measured with its map.
_COMPULSORY_MAPS = {"tokenize": (1, 2), "project": (2, 3), "project_tokenize": (2, 3)}


def compulsory_maps(op: str, which: str) -> int:
    """How many maps go through memory at least.

    Example:
        >>> compulsory_maps("tokenize", "forward"), compulsory_maps("project", "forward+backward")
        (1, 5)
    """
    forward, backward = _COMPULSORY_MAPS[op]
    return forward if which == FORWARD else forward + backward


def count_flops(function: Callable[..., Any], operands: Mapping[str, Tensor], which: str) -> int:
    """FLOPs of a call by the formulas of its ops, ours included; nothing is computed.

    A kernel's backward counts what it computes again: that is what its closed form asks for.

    Example:
        >>> count_flops(lambda x: x @ x, {"x": torch.zeros(4, 4)}, "forward")
        128
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves: list[Tensor] = [mode.from_tensor(value.detach()) for value in operands.values()]
        counter = FlopCounterMode(display=False)
        if which == FORWARD:
            with torch.no_grad(), counter:
                function(*leaves)
        else:
            leaves = [leaf.requires_grad_() for leaf in leaves]
            with counter:
                results = function(*leaves)
                results = results if isinstance(results, tuple) else (results,)
                torch.autograd.grad(results, leaves, [torch.ones_like(result) for result in results])
    return int(counter.get_total_flops())


def floor(maps_bytes: int, flops: int, bandwidth: float, matrix_rate: float) -> tuple[float, str]:
    """Seconds, and which term they are: "bytes" or "flops".

    Example:
        >>> floor(100, 30, bandwidth=10.0, matrix_rate=10.0)
        (10.0, 'bytes')
    """
    by_bytes, by_flops = maps_bytes / bandwidth, flops / matrix_rate
    return (by_bytes, "bytes") if by_bytes >= by_flops else (by_flops, "flops")

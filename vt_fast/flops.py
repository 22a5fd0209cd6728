"""FLOP counts of the ops: ``torch.utils.flop_counter`` knows them by itself, fvcore needs handles.

torch counts FLOPs, fvcore and the paper count multiply-accumulates, which are half of them. The
formulas stand with the ops and count what is executed: a backward's include what it recomputes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE

__all__ = ["fvcore_handles"]


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """Handles that make fvcore count the MACs of the ops; without them it counts 0 and warns.

    Example:
        >>> import torch
        >>> from fvcore.nn import FlopCountAnalysis
        >>> from vt_fast.nn import FilterTokenizer
        >>> analysis = FlopCountAnalysis(FilterTokenizer(64, 16), torch.zeros(1, 49, 64))
        >>> analysis.set_op_handle(**fvcore_handles()).total() == 2 * 49 * 64 * 16
        True
    """
    return {f"vt_fast::{op.name}": _handle(op.raw) for op in (TOKENIZE, PROJECT, PROJECT_TOKENIZE)}


def _handle(op: Any) -> Callable[[list[Any], list[Any]], int]:
    formula = flop_registry[op.overloadpacket]

    def count(inputs: list[Any], outputs: list[Any]) -> int:
        *arguments, _backend = map(_argument, inputs)
        flops: int = formula(*arguments)
        return flops // 2

    return count


def _argument(value: Any) -> Any:
    """An argument in a traced graph: its value, or for a tensor one of its shape without data."""
    if isinstance(value.type(), torch._C.TensorType):
        return torch.empty(value.type().sizes(), device="meta")
    return value.toIValue()

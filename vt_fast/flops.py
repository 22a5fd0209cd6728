"""FLOP counts of the ops: ``torch.utils.flop_counter`` knows them by itself, other counters need handles.

torch counts FLOPs, the other counters and the paper count multiply-accumulates, which are half of them. The
formulas stand with the ops and count what is executed: a backward's include what it recomputes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from vt_fast import nn
from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE

__all__ = ["fvcore_handles", "ptflops_handles", "thop_handles"]

_OPS = (TOKENIZE, PROJECT, PROJECT_TOKENIZE)


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
    return {f"vt_fast::{op.name}": _handle(op.raw) for op in _OPS}


def ptflops_handles() -> dict[Any, Callable[[Any, Any], int]]:
    """Handles of the ops for ptflops, with ``backend="aten"``; without them it counts 0.

    Example:
        >>> handles = ptflops_handles()  # get_model_complexity_info(custom_modules_hooks=handles, ...)
        >>> [str(op) for op in handles]
        ['vt_fast.tokenize', 'vt_fast.project', 'vt_fast.project_tokenize']
    """
    return {op.raw.overloadpacket: _rule(op.raw) for op in _OPS}


def _rule(op: Any) -> Callable[[Any, Any], int]:
    formula = flop_registry[op.overloadpacket]

    def count(arguments: Any, results: Any) -> int:
        flops: int = formula(*arguments, out_val=results)
        return flops // 2

    return count


def thop_handles() -> dict[type[torch.nn.Module], Callable[..., None]]:
    """Rules of the modules for thop, which sees no ops; without them it counts 0.

    A rule runs the module once more and counts everything inside of it. Fused passes stay fused. thop tells a
    rule no keyword arguments, so a module that was called with a mask is counted without it.

    Example:
        >>> import torch
        >>> from thop import profile
        >>> tokenizer = nn.FilterTokenizer(64, 16)
        >>> macs, _ = profile(tokenizer, (torch.zeros(1, 49, 64),), custom_ops=thop_handles(), verbose=False)
        >>> macs == 2 * 49 * 64 * 16
        True
    """
    named = (getattr(nn, name) for name in nn.__all__)
    kinds = (kind for kind in named if isinstance(kind, type) and not issubclass(kind, nn.PositionCode))
    return {**dict.fromkeys(kinds, _add_macs), nn.GroupedLinear: _add_macs_of_linear}


def _add_macs_of_linear(module: Any, inputs: Any, result: Any) -> None:
    if isinstance(result, torch.Tensor):  # otherwise it was called for a part of another module's work
        module.total_ops += result.numel() * module.weight.shape[1]


def _add_macs(module: Any, inputs: Any, result: Any) -> None:
    if _counting.get():  # a part of a module that is being counted
        return
    before = _counting.set(True)
    try:
        with FlopCounterMode(display=False) as counter:
            module.forward(*inputs)
    finally:
        _counting.reset(before)
    for part in module.modules():
        if part is not module:
            part.total_ops.zero_()  # thop adds the parts of the outermost module to it
    module.total_ops += counter.get_total_flops() // 2


_counting: ContextVar[bool] = ContextVar("counting", default=False)


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

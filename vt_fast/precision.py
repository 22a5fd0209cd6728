"""Which dtype something is computed in, and what autocast makes of the operands of a call."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

#: The dtypes of feature maps.
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Whether autocast is on for any type of device.
any_autocast = torch._C._is_any_autocast_enabled


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, of lse and of unrounded tokens: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a type of device; False, not an error, where it knows no autocast."""
    # torch 2.11 cannot compile the first question, and a compiler is not asked about meta tensors.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A context in which autocast is off for a type of device."""
    return torch.autocast(device, enabled=False) if autocast_enabled(device) else nullcontext()


def autocast(*operands: Tensor | None) -> tuple[Any, ...]:
    """The operands, a tensor first; under autocast in its dtype.

    Float64 is left alone, as PyTorch does it, and then all of them are: mixed dtypes are an error either
    way, which should name the dtypes that were given.
    """
    tensors = [value for value in operands if isinstance(value, Tensor)]
    device = tensors[0].device.type
    if not autocast_enabled(device) or any(value.dtype == torch.float64 for value in tensors):
        return operands
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in operands
    )

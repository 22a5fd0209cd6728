"""Small operands as kernels take them: dense, with a stride of 0 between samples that share one."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.layout import per_pixel


def rows(operand: Tensor) -> tuple[Tensor, int]:
    """(B, rows, C) or (rows, C): the tensor with dense rows, and the stride between samples."""
    dense = operand if operand.is_contiguous() else operand.contiguous()
    return dense, 0 if operand.dim() == 2 else dense.stride(0)


def biases(token_bias: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """(B, rows) or (rows,); ``like`` is a stand-in for none."""
    if token_bias is None:
        return like, 0
    dense = token_bias.contiguous()
    return dense, 0 if token_bias.dim() == 1 else dense.stride(0)


def pixels(value: Tensor | None, like: Tensor) -> Tensor:
    """(B, N) or (B, H, W), dense; a mask as bytes."""
    if value is None:
        return like
    flat = per_pixel(value)
    assert flat is not None
    flat = flat.contiguous()
    return flat.view(torch.uint8) if flat.dtype == torch.bool else flat

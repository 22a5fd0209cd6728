"""Small operands as kernels take them: dense, with a stride of 0 between samples that share one."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.layout import per_pixel


def rows(operand: Tensor) -> tuple[Tensor, int]:
    """(B, rows, C) or (rows, C): the tensor with dense rows, and the stride between samples."""
    dense = operand if operand.is_contiguous() else operand.contiguous()
    return dense, 0 if operand.dim() == 2 else dense.stride(0)


def biases(bias: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """(B, rows) or (rows,); ``like`` is a stand-in for none."""
    if bias is None:
        return like, 0
    dense = bias.contiguous()
    return dense, 0 if bias.dim() == 1 else dense.stride(0)


def pixels(value: Tensor | None, like: Tensor) -> Tensor:
    """(B, N) or (B, H, W), dense; a mask as bytes."""
    if value is None:
        return like
    flat = per_pixel(value)
    assert flat is not None
    flat = flat.contiguous()
    return flat.view(torch.uint8) if flat.dtype == torch.bool else flat


def head_blocks(rows: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(B?, L, D) as (B?, heads, L, D / heads): what each head sees."""
    blocks: Tensor = rows.to(dtype).unflatten(-1, (heads, -1)).transpose(-3, -2)
    return blocks


def value_blocks(values: Tensor, bias: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor:
    """head_blocks of values; removed rows are 0, as what those hold must not be looked at."""
    blocks = head_blocks(values, heads, dtype)
    if bias is None:
        return blocks
    removed = (bias == -torch.inf).unflatten(-1, (heads, -1)).unsqueeze(-1)
    return torch.where(removed, 0.0, blocks)


def mix(blocks: Tensor, others: Tensor, batch: int) -> Tensor:
    """(B, heads * L, n): products of head_blocks with those of others (B?, n, D), for each sample."""
    heads = blocks.shape[-3]
    products = blocks @ head_blocks(others, heads, blocks.dtype).mT
    return products.flatten(-3, -2).expand(batch, -1, -1).contiguous()


def unmix(weights: Tensor, blocks: Tensor) -> Tensor:
    """Sums (B, n, D) of head_blocks' rows with weights (B, n, heads * L)."""
    parts = weights.unflatten(-1, (blocks.shape[-3], -1)).transpose(-3, -2)  # (B, heads, n, L)
    sums: Tensor = (parts @ blocks).transpose(-3, -2).flatten(-2)
    return sums


def gather_rows(weights: Tensor, rows: Tensor, heads: int) -> Tensor:
    """(B, L, D) whose block h is the sum of block h of rows (B, n, D) with weights (B, heads * L, n)."""
    parts: Tensor = weights.unflatten(1, (heads, -1)) @ head_blocks(rows, heads, weights.dtype)
    return parts.transpose(1, 2).flatten(2)

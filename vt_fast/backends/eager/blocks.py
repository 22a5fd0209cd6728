"""Products of a tile with a few rows, head by head on channel blocks, and the softmax over tokens.

Rows in block form are (b, L, C): channel block h belongs to head h. ``weights`` are (b, num_heads * L, n),
head-major. With one head a block is the whole width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def head_rows_to_blocks(rows: Tensor, num_heads: int) -> Tensor:
    """(.., num_heads * L, c) -> (.., L, num_heads * c)."""
    return rows if num_heads == 1 else rows.unflatten(-2, (num_heads, -1)).transpose(-3, -2).flatten(-2)


def blocks_to_head_rows(blocks: Tensor, num_heads: int) -> Tensor:
    """(.., L, num_heads * c) -> (.., num_heads * L, c)."""
    return (
        blocks if num_heads == 1 else blocks.unflatten(-1, (num_heads, -1)).transpose(-3, -2).flatten(-3, -2)
    )


def scores(tile: Tensor, blocks: Tensor, num_heads: int = 1) -> Tensor:
    """Each pixel's block h times each row's block h: (b, n, C), (b or 1, L, C) -> (b, num_heads * L, n)."""
    blocks = blocks.expand(tile.shape[0], -1, -1)
    if num_heads == 1:
        return torch.bmm(blocks, tile.mT)
    pairs = zip(blocks.chunk(num_heads, -1), tile.chunk(num_heads, -1), strict=True)
    return torch.cat([torch.bmm(rows, pixels.mT) for rows, pixels in pairs], 1)


def pool(weights: Tensor, tile: Tensor, num_heads: int = 1) -> Tensor:
    """Pixels into rows: (b, num_heads * L, n), (b, n, C) -> (b, L, C), block h by head h's weights."""
    if num_heads == 1:
        return torch.bmm(weights, tile)
    pairs = zip(weights.chunk(num_heads, 1), tile.chunk(num_heads, -1), strict=True)
    return torch.cat([torch.bmm(weight, pixels) for weight, pixels in pairs], -1)


def expand(weights: Tensor, blocks: Tensor, out: Tensor, num_heads: int = 1, *, add: bool = False) -> Tensor:
    """Rows onto pixels: (b, num_heads * L, n), (b or 1, L, C) -> (b, n, C), block h by head h's weights.

    Written to ``out``, whatever that held, or added to it; returns it.
    """
    blocks = blocks.expand(weights.shape[0], -1, -1)
    parts = zip(
        weights.chunk(num_heads, 1), blocks.chunk(num_heads, -1), out.chunk(num_heads, -1), strict=True
    )
    for weight, rows, target in parts:
        target.baddbmm_(weight.mT, rows, beta=1 if add else 0)
    return out


def softmax_over_tokens(logits: Tensor, removed: Tensor | None, num_heads: int) -> Tensor:
    """Softmax of (b, num_heads * L, n) over each head's L rows.

    A head whose tokens are all ``removed`` (b or 1, num_heads * L) gets weights of 0, not NaN.
    """
    segments = logits.unflatten(1, (num_heads, -1))
    weights: Tensor = torch.softmax(segments, 2)
    if removed is not None:
        weights = weights.masked_fill_(removed.unflatten(1, (num_heads, -1)).all(2)[..., None, None], 0)
    return weights.flatten(1, 2)


def softmax_backward(attention: Tensor, grad: Tensor, num_heads: int) -> Tensor:
    """dS = P * (dP - sum of P * dP over each head's tokens), all (b, num_heads * L, n)."""
    inner = (attention * grad).unflatten(1, (num_heads, -1)).sum(2, keepdim=True)
    centred: Tensor = grad.unflatten(1, (num_heads, -1)) - inner
    return attention * centred.flatten(1, 2)

"""Products of a tile with a few rows, block by block of the channels, and weights from logits.

Rows in block form are (b, L, C): channel block h belongs to head h. ``weights`` and logits are (b, R, n) with
R = num_heads * L, head-major. Heads that see all channels have one block: ``blocks`` is num_heads or 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows_to_blocks(rows: Tensor, blocks: int) -> Tensor:
    """(.., blocks * L, c) -> (.., L, blocks * c)."""
    return rows if blocks == 1 else rows.unflatten(-2, (blocks, -1)).transpose(-3, -2).flatten(-2)


def blocks_to_rows(rows: Tensor, blocks: int) -> Tensor:
    """(.., L, blocks * c) -> (.., blocks * L, c)."""
    return rows if blocks == 1 else rows.unflatten(-1, (blocks, -1)).transpose(-3, -2).flatten(-3, -2)


def to_channels(statistic: Tensor, channels: int, blocks: int) -> Tensor:
    """A number for each row (.., R) for each number of rows in block form: (.., L, channels)."""
    statistic = statistic[..., None]
    if blocks == 1:
        return statistic
    return rows_to_blocks(statistic, blocks).repeat_interleave(channels // blocks, -1)


def products(tile: Tensor, rows: Tensor, blocks: int = 1) -> Tensor:
    """Each pixel's block h times each row's block h: (b, n, C), (b or 1, L, C) -> (b, R, n)."""
    rows = rows.expand(tile.shape[0], -1, -1)
    if blocks == 1:
        return torch.bmm(rows, tile.mT)
    pairs = zip(rows.chunk(blocks, -1), tile.chunk(blocks, -1), strict=True)
    return torch.cat([torch.bmm(some, pixels.mT) for some, pixels in pairs], 1)


def pool(weights: Tensor, tile: Tensor, blocks: int = 1) -> Tensor:
    """Pixels into rows: (b, R, n), (b, n, C) -> (b, L, C), block h by head h's weights."""
    if blocks == 1:
        return torch.bmm(weights, tile)
    pairs = zip(weights.chunk(blocks, 1), tile.chunk(blocks, -1), strict=True)
    return torch.cat([torch.bmm(weight, pixels) for weight, pixels in pairs], -1)


def expand(weights: Tensor, rows: Tensor, out: Tensor, blocks: int = 1, *, add: bool = False) -> Tensor:
    """Rows onto pixels: (b, R, n), (b or 1, L, C) -> (b, n, C), block h by head h's weights.

    Written to ``out``, whatever that held, or added to it; returns it.
    """
    rows = rows.expand(weights.shape[0], -1, -1)
    parts = zip(weights.chunk(blocks, 1), rows.chunk(blocks, -1), out.chunk(blocks, -1), strict=True)
    for weight, some, target in parts:
        target.baddbmm_(weight.mT, some, beta=1 if add else 0)
    return out


def weigh(
    logits: Tensor, normalize: str | None, num_heads: int, removed: Tensor | None, partial: bool
) -> Tensor:
    """Weights (b, R, n) of a tile where no sum over pixels is needed: "tokens", "exp" or None.

    ``removed`` (b or 1, R) are rows whose logits are -inf. ``partial``: others may be, too. A head whose
    logits are all -inf at a pixel gets weights of 0, not NaN. The logits may be overwritten.
    """
    if normalize == "exp":
        return logits.exp_()
    if normalize is None:
        return logits if removed is None else logits.masked_fill_(removed[..., None], 0)
    segments = logits.unflatten(1, (num_heads, -1))
    weights: Tensor = torch.softmax(segments, 2)
    if partial:
        weights = weights.masked_fill_((segments == -torch.inf).all(2, keepdim=True), 0)
    elif removed is not None:
        weights = weights.masked_fill_(removed.unflatten(1, (num_heads, -1)).all(2)[..., None, None], 0)
    return weights.flatten(1, 2)


def weigh_backward(
    weights: Tensor, grad: Tensor, normalize: str | None, num_heads: int, removed: Tensor | None
) -> Tensor:
    """dS from W and dW, all (b, R, n).

    "tokens": W * (dW - sum of W * dW over each head's rows); "exp": W * dW; None: dW.
    """
    if normalize == "exp":
        return weights * grad
    if normalize is None:
        return grad if removed is None else grad.masked_fill(removed[..., None], 0)
    inner = (weights * grad).unflatten(1, (num_heads, -1)).sum(2, keepdim=True)
    centred: Tensor = grad.unflatten(1, (num_heads, -1)) - inner
    return weights * centred.flatten(1, 2)

"""The logits of a tile: its pixels times the rows, scores that were given, and biases."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from vt_fast.backends.contract import sees_block
from vt_fast.backends.eager.blocks import expand, pool, products, rows_to_blocks
from vt_fast.backends.eager.tiles import batched, rows_of


def score_pixels(scores: Tensor | None, offsets: Tensor | None) -> Tensor | None:
    """(B, N, R) of scores (B, R, N) or (B, R, H, W); (1, total, R) of those of bags."""
    if scores is None:
        return None
    return scores.mT[None] if offsets is not None else scores.flatten(2).mT


class Logits(NamedTuple):
    """Rows in block form (b or 1, L, C), or none, and a bias for each (b or 1, R)."""

    rows: Tensor | None
    blocks: int
    token_bias: Tensor | None
    removed: Tensor | None  # (b or 1, R), the rows whose bias is -inf

    @classmethod
    def prepare(
        cls, rows: Tensor | None, token_bias: Tensor | None, num_heads: int, channels: int, dtype: torch.dtype
    ) -> Logits:
        """From the op's operands. A row whose bias is -inf is removed, even if it holds NaN."""
        blocks = num_heads if sees_block(rows, channels, num_heads) else 1
        rows = None if rows is None else batched(rows.to(dtype), 2)
        removed = None
        if token_bias is not None:
            token_bias = batched(token_bias.to(dtype), 1)
            removed = token_bias == -torch.inf
            rows = None if rows is None else torch.where(removed[..., None], 0, rows)
        rows = None if rows is None else rows_to_blocks(rows, blocks)
        return cls(rows, blocks, token_bias, removed)

    def group(self, samples: slice) -> Logits:
        """The part that belongs to a group of samples."""
        rows, blocks, token_bias, removed = self
        rows = None if rows is None else rows_of(rows, samples)
        if token_bias is None or removed is None:
            return Logits(rows, blocks, None, None)
        return Logits(rows, blocks, rows_of(token_bias, samples), rows_of(removed, samples))

    def of(self, pixels: Tensor | None, scores: Tensor | None) -> Tensor:
        """Logits (b, R, n) of a tile of pixels (b, n, C) and of scores (b, n, R); a tensor of their own."""
        if self.rows is None or pixels is None:
            logits = cast(Tensor, scores).mT.clone()
        else:
            logits = products(pixels, self.rows, self.blocks)
            if scores is not None:
                logits += scores.mT
        if self.token_bias is None or self.removed is None:
            return logits
        logits += self.token_bias[..., None]
        return logits.masked_fill_(self.removed[..., None], -torch.inf)

    def grad_pixels(self, grad: Tensor, out: Tensor, *, add: bool) -> Tensor:
        """dS rows (b, n, C), written to ``out`` or added to it."""
        if self.rows is not None:
            return expand(grad, self.rows, out, self.blocks, add=add)
        return out if add else out.zero_()

    def grad_rows(self, grad: Tensor, pixels: Tensor) -> Tensor:
        """A tile's part of dS^T x, in block form."""
        return pool(grad, pixels, self.blocks)

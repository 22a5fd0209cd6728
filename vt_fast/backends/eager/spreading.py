"""Spreading tile by tile, forward and backward: what project and project_tokenize share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vt_fast.backends.contract import (
    Project,
    ProjectBackward,
    ProjectTokenize,
    ProjectTokenizeBackward,
    row_count,
    sums_heads,
)
from vt_fast.backends.eager.blocks import (
    blocks_to_rows,
    expand,
    pool,
    products,
    to_channels,
    weigh,
    weigh_backward,
)
from vt_fast.backends.eager.logits import Logits
from vt_fast.backends.eager.tiles import OperandGradient, batched, rows_of
from vt_fast.layout import as_pixels, channel_count
from vt_fast.precision import compute_dtype


def residual_pixels(pixels: Tensor, residual: Tensor | None, residual_is_input: bool) -> Tensor | None:
    """The pixels (B, N, D) that are added to the result, or None."""
    if residual_is_input:
        return pixels
    return None if residual is None else as_pixels(residual)


class Spread(NamedTuple):
    """Logits and values of some samples.

    Values are (b or 1, L, D) with a block of the channels for each head (``blocks``), or (b or 1, R, D),
    summed over the heads.
    """

    logits: Logits
    values: Tensor
    blocks: int
    num_heads: int
    normalize: str | None = "tokens"
    partial: bool = False  # scores were given, so that any logit may be -inf

    @classmethod
    def prepare(cls, call: Project | ProjectBackward | ProjectTokenize | ProjectTokenizeBackward) -> Spread:
        """From the op's operands. A token whose bias is -inf is removed, even if it holds NaN."""
        dtype, num_heads, values = compute_dtype(call.x.dtype), call.num_heads, call.values
        scores, offsets = getattr(call, "scores", None), getattr(call, "offsets", None)
        summed = sums_heads(values, row_count(call.keys, scores, offsets), num_heads)
        logits = Logits.prepare(call.keys, call.token_bias, num_heads, channel_count(call.x), dtype)
        values, blocks = batched(values.to(dtype), 2), 1 if summed else num_heads
        if logits.removed is not None:
            values = torch.where(to_channels(logits.removed, values.shape[-1], blocks), 0, values)
        normalize = getattr(call, "normalize", "tokens")
        return cls(logits, values, blocks, num_heads, normalize, scores is not None)

    def group(self, samples: slice) -> Spread:
        """The part that belongs to a group of samples."""
        logits, values = self.logits.group(samples), rows_of(self.values, samples)
        return Spread(logits, values, self.blocks, self.num_heads, self.normalize, self.partial)

    def weights(self, pixels: Tensor, scores: Tensor | None = None) -> Tensor:
        """W (b, R, n) of a tile of pixels (b, n, C) and of scores (b, n, R)."""
        logits = self.logits.of(pixels, scores)
        return weigh(logits, self.normalize, self.num_heads, self.logits.removed, self.partial)

    def output(self, weights: Tensor, residual: Tensor | None, tile: slice, out: Tensor) -> Tensor:
        """W V, plus the tile of the residual pixels (b, N, D) where there are any, written to ``out``."""
        expand(weights, self.values, out, self.blocks)
        return out if residual is None else out.add_(residual[:, tile])


class SpreadBackward:
    """The backward of spreading.

    With dW = G V^T and dS by :func:`weigh_backward`: dx = dS keys, dkeys = dS^T x, dvalues = W^T G,
    dtoken_bias = column sums of dS.
    """

    def __init__(
        self, call: ProjectBackward | ProjectTokenizeBackward, spread: Spread, needs: list[bool]
    ) -> None:
        logits = spread.logits
        self.blocks = logits.blocks
        self.keys = OperandGradient(call.keys, 2, needs[0], logits.rows)
        self.values = OperandGradient(call.values, 2, needs[1], spread.values)
        self.token_bias = OperandGradient(call.token_bias, 1, needs[2], logits.token_bias)

    def tile(self, spread: Spread, pixels: Tensor, weights: Tensor, grad: Tensor) -> Tensor:
        """dS (b, R, n) for a tile of pixels (b, n, C) and of the gradient G (b, n, D)."""
        grad_weights = products(grad, spread.values, spread.blocks)
        grad_logits = weigh_backward(
            weights, grad_weights, spread.normalize, spread.num_heads, spread.logits.removed
        )
        if self.keys.needed:
            self.keys.add(spread.logits.grad_rows(grad_logits, pixels))
        if self.values.needed:
            self.values.add(pool(weights, grad, spread.blocks))
        if self.token_bias.needed:
            self.token_bias.add(grad_logits.sum(-1))
        return grad_logits

    def end_group(self) -> None:
        """The tiles that follow belong to the next group of samples."""
        for gradient in (self.keys, self.values, self.token_bias):
            gradient.end_group()

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dkeys, dvalues, dtoken_bias in the compute dtype."""
        dkeys = self.keys.result()
        dkeys = None if dkeys is None else blocks_to_rows(dkeys, self.blocks)
        return dkeys, self.values.result(), self.token_bias.result()

"""The softmax over tokens and its backward, tile by tile: what project and project_tokenize share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vt_fast.backends.eager.blocks import (
    expand,
    head_rows_to_blocks,
    pool,
    scores,
    softmax_backward,
    softmax_over_tokens,
)
from vt_fast.backends.eager.tiles import OperandGradient, batched, rows_of
from vt_fast.layout import as_pixels
from vt_fast.precision import compute_dtype


def residual_pixels(pixels: Tensor, residual: Tensor | None, residual_is_input: bool) -> Tensor | None:
    """The pixels (B, N, D) that are added to the result, or None."""
    if residual_is_input:
        return pixels
    return None if residual is None else as_pixels(residual)


@dataclass(frozen=True)
class TokenSoftmax:
    """Keys (b or 1, R, C), values (b or 1, L, D) and bias (b or 1, R) of some samples, R = num_heads * L."""

    keys: Tensor
    values: Tensor
    token_bias: Tensor | None
    num_heads: int
    removed: Tensor | None = None  # (b or 1, num_heads * L), the tokens whose bias is -inf

    @classmethod
    def prepare(cls, keys: Tensor, values: Tensor, token_bias: Tensor | None, num_heads: int) -> TokenSoftmax:
        """From the op's operands. A token whose bias is -inf is removed, even if it holds NaN."""
        dtype = compute_dtype(keys.dtype)
        keys, values = batched(keys.to(dtype), 2), batched(values.to(dtype), 2)
        if token_bias is None:
            return cls(keys, values, None, num_heads)
        token_bias = batched(token_bias.to(dtype), 1)
        removed = token_bias == -torch.inf
        width = values.shape[-1] // num_heads
        removed_blocks = head_rows_to_blocks(removed[..., None], num_heads).repeat_interleave(width, -1)
        keys = torch.where(removed[..., None], 0, keys)
        values = torch.where(removed_blocks, 0, values)
        return cls(keys, values, token_bias, num_heads, removed)

    def group(self, samples: slice) -> TokenSoftmax:
        """The part that belongs to a group of samples."""
        token_bias = None if self.token_bias is None else rows_of(self.token_bias, samples)
        removed = None if self.removed is None else rows_of(self.removed, samples)
        return TokenSoftmax(
            rows_of(self.keys, samples), rows_of(self.values, samples), token_bias, self.num_heads, removed
        )

    def attention(self, values: Tensor) -> Tensor:
        """P (b, num_heads * L, n) of a tile of pixels (b, n, C)."""
        logits = scores(values, self.keys)
        if self.token_bias is not None:
            logits += self.token_bias[..., None]
        return softmax_over_tokens(logits, self.removed, self.num_heads)

    def output(self, attention: Tensor, residual: Tensor | None, tile: slice, out: Tensor) -> Tensor:
        """P V, plus the tile of the residual pixels (b, N, D) where there are any, written to ``out``."""
        expand(attention, self.values, out, self.num_heads)
        return out if residual is None else out.add_(residual[:, tile])


class TokenSoftmaxBackward:
    """The backward of the softmax over tokens.

    With dP = G V^T: dS = P * (dP - rowsum(P * dP)), dx = dS keys, dkeys = dS^T x, dvalues = P^T G,
    dtoken_bias = column sums of dS.
    """

    def __init__(self, keys: Tensor, values: Tensor, token_bias: Tensor | None, needs: list[bool]) -> None:
        self.keys = OperandGradient(keys, 2, needs[0])
        self.values = OperandGradient(values, 2, needs[1])
        self.token_bias = OperandGradient(token_bias, 1, needs[2])

    def tile(self, softmax: TokenSoftmax, values: Tensor, attention: Tensor, grad: Tensor) -> Tensor:
        """dS (b, num_heads * L, n) for a tile of pixels (b, n, C) and of the gradient G (b, n, D)."""
        grad_logits = softmax_backward(
            attention, scores(grad, softmax.values, softmax.num_heads), softmax.num_heads
        )
        if self.keys.needed:
            self.keys.add(pool(grad_logits, values))
        if self.values.needed:
            self.values.add(pool(attention, grad, softmax.num_heads))
        if self.token_bias.needed:
            self.token_bias.add(grad_logits.sum(-1))
        return grad_logits

    def end_group(self) -> None:
        """The tiles that follow belong to the next group of samples."""
        for gradient in (self.keys, self.values, self.token_bias):
            gradient.end_group()

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dkeys, dvalues, dtoken_bias in the compute dtype."""
        return self.keys.result(), self.values.result(), self.token_bias.result()

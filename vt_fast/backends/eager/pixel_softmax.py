"""The softmax over pixels, tile by tile: what tokenize and project_tokenize share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vt_fast.backends.eager.blocks import expand, head_rows_to_blocks, pool, scores
from vt_fast.backends.eager.tiles import keep_valid


def add_bias(logits: Tensor, pixel_bias: Tensor | None, valid: Tensor | None, tile: slice) -> Tensor:
    """Logits with the pixels' bias added, and -inf where a pixel is not valid. In place."""
    if pixel_bias is not None:
        logits += pixel_bias[:, None, tile]
    return logits if valid is None else logits.masked_fill_(~valid[:, None, tile], -torch.inf)


def extra_values_tile(
    extra_values: Tensor | None, valid: Tensor | None, tile: slice, like: Tensor
) -> Tensor | None:
    """A tile of the extra values for each sample, with 0 in place of invalid pixels."""
    if extra_values is None:
        return None
    extra = extra_values[tile].to(like.dtype).expand(like.shape[0], -1, -1)
    return extra if valid is None else keep_valid(extra, valid, tile)


def empty_samples(valid: Tensor) -> Tensor:
    """(b, 1): which samples have no valid pixel among (b, N)."""
    return ~valid.any(1, keepdim=True)


class PixelSoftmax:
    """The running softmax over pixels: tiles go in one by one, tokens and their lse come out.

    Keeps, for each token, the maximum logit so far, and the sums relative to it.
    """

    def __init__(self, num_heads: int, valid: Tensor | None) -> None:
        self.num_heads, self.valid = num_heads, valid
        self.state: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, logits: Tensor, values: Tensor, extra: Tensor | None) -> None:
        """A tile: logits (b, num_heads * L, n), pixels (b, n, C), and extra values (b, n, P)."""
        maximum = logits.amax(-1, keepdim=True)
        if self.state is not None:
            maximum = torch.maximum(self.state[0], maximum)
        # Where nothing valid has come yet, -inf - -inf would be NaN.
        base = maximum.masked_fill(maximum == -torch.inf, 0)
        weights = torch.exp(logits - base)
        total, tokens = weights.sum(-1, keepdim=True), pool(weights, values, self.num_heads)
        if extra is not None:
            tokens = torch.cat([tokens, torch.bmm(weights, extra)], -1)
        if self.state is not None:
            rescale = torch.exp(self.state[0] - base)
            total += self.state[1] * rescale
            tokens += self.state[2] * self._to_channels(rescale, tokens)
        self.state = maximum, total, tokens

    def result(self) -> tuple[Tensor, Tensor]:
        """Tokens (b, L, C + P) and lse (b, num_heads * L): 0 and -inf where no pixel was valid."""
        if self.state is None:
            raise RuntimeError("no tile was added")
        maximum, total, tokens = self.state
        # inf - inf is NaN, but the sum itself is infinite.
        lse = torch.where(maximum == torch.inf, maximum, torch.log(total) + maximum)
        tokens = tokens / self._to_channels(total, tokens)
        if self.valid is not None:
            tokens = tokens.masked_fill(empty_samples(self.valid)[..., None], 0)
        return tokens, lse.squeeze(-1)

    def _to_channels(self, statistic: Tensor, tokens: Tensor) -> Tensor:
        """(b, num_heads * L, 1) repeated over each head's channels, to multiply tokens with."""
        if self.num_heads == 1:
            return statistic
        return head_rows_to_blocks(statistic, self.num_heads).repeat_interleave(
            tokens.shape[-1] // self.num_heads, -1
        )


class PixelSoftmaxBackward:
    """The backward of the softmax over pixels.

    With A = exp(logits - lse), dA = x dT^T and delta = rowsum(dT * T) - dlse: dS = A * (dA - delta),
    dx = A dT + dS queries, dqueries = dS^T x, dpixel_bias = rowsum(dS), dextra_values = A dT[:, C:].
    """

    def __init__(
        self,
        grad_tokens: Tensor,
        grad_lse: Tensor | None,
        tokens: Tensor,
        lse: Tensor,
        valid: Tensor | None,
        channels: int,
        num_heads: int,
    ) -> None:
        delta = (grad_tokens * tokens).unflatten(-1, (num_heads, -1)).sum(-1).mT.flatten(1)
        if grad_lse is not None:
            delta = delta - grad_lse
        if valid is not None:
            # A sample without a valid pixel has gradients of 0, whatever arrives for its tokens and lse.
            empty = empty_samples(valid)
            lse, delta = lse.masked_fill(empty, 0), delta.masked_fill(empty, 0)
            grad_tokens = grad_tokens.masked_fill(empty[..., None], 0)
        self.lse, self.delta = lse[..., None], delta[..., None]
        self.grad_tokens, self.grad_extra = grad_tokens[..., :channels], grad_tokens[..., channels:]
        self.num_heads = num_heads

    def group(self, blocks: Tensor, samples: slice) -> GroupBackward:
        """The part that belongs to a group of samples, whose queries in block form are ``blocks``."""
        return GroupBackward(
            blocks,
            self.grad_tokens[samples],
            self.grad_extra[samples],
            self.lse[samples],
            self.delta[samples],
            self.num_heads,
        )


@dataclass(frozen=True)
class GroupBackward:
    """:class:`PixelSoftmaxBackward` for one group of samples."""

    blocks: Tensor
    grad_tokens: Tensor
    grad_extra: Tensor
    lse: Tensor
    delta: Tensor
    num_heads: int

    def tile(self, values: Tensor, logits: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """A and dS (b, num_heads * L, n) of a tile. The logits are overwritten."""
        attention = logits.sub_(self.lse).exp_()
        grad = scores(values, self.grad_tokens, self.num_heads)
        if extra is not None:
            grad += torch.bmm(self.grad_extra, extra.mT)
        return attention, grad.sub_(self.delta).mul_(attention)

    def grad_pixels(
        self, attention: Tensor, grad: Tensor, valid: Tensor | None, tile: slice, out: Tensor
    ) -> Tensor:
        """dx (b, n, C) of a tile, exactly 0 in invalid pixels, written to ``out``."""
        expand(attention, self.grad_tokens, out, self.num_heads)
        expand(grad, self.blocks, out, self.num_heads, add=True)
        return out if valid is None else out.masked_fill_(~valid[:, tile, None], 0)

    def grad_blocks(self, grad: Tensor, values: Tensor) -> Tensor:
        """A tile's part of the queries' gradient, (b, L, C) in block form."""
        return pool(grad, values, self.num_heads)

    def grad_extra_values(self, attention: Tensor) -> Tensor:
        """The gradient (n, P) of a tile of the extra values."""
        return torch.bmm(attention.mT, self.grad_extra).sum(0)

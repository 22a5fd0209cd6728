"""Pooling tile by tile, forward and backward: what tokenize and project_tokenize share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vt_fast.backends.eager.blocks import expand, pool, products, to_channels, weigh, weigh_backward
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


class Pooling(NamedTuple):
    """How a group of samples is pooled.

    ``removed`` (b or 1, R) are rows that take no part, ``valid`` (b, N) the pixels that do. ``partial``:
    there are scores, so that any logit may be -inf.
    """

    normalize: str | None = "pixels"
    num_heads: int = 1
    blocks: int = 1
    removed: Tensor | None = None
    valid: Tensor | None = None
    partial: bool = False

    @property
    def empty_stat(self) -> float:
        """The statistic of an empty row."""
        return -torch.inf if self.normalize == "pixels" else 0.0

    def empty_rows(self, stats: Tensor) -> Tensor | None:
        """(b or 1, R or 1): the rows that no pixel has a weight for, whatever the map holds."""
        found = self.removed
        if self.valid is not None:
            empty = ~self.valid.any(1, keepdim=True)
            found = empty if found is None else found | empty
        if self.partial and self.normalize == "pixels":
            empty = stats == -torch.inf
            found = empty if found is None else found | empty
        return found

    def weights(self, logits: Tensor, tile: slice) -> Tensor:
        """W of a tile, where no sum over pixels is needed. The logits may be overwritten."""
        found = weigh(logits, self.normalize, self.num_heads, self.removed, self.partial)
        return self.keep(found, tile)

    def keep(self, weights: Tensor, tile: slice) -> Tensor:
        """With 0 for invalid pixels. In place."""
        return weights if self.valid is None else weights.masked_fill_(~self.valid[:, None, tile], 0)


class Pool:
    """The running sums over pixels: tiles go in one by one, tokens and statistics come out.

    With normalize="pixels" it keeps, for each token, the maximum logit so far, and the sums relative to it.
    """

    def __init__(self, pooling: Pooling) -> None:
        self.pooling = pooling
        self.state: tuple[Tensor | None, Tensor, Tensor] | None = None

    def add(self, logits: Tensor, values: Tensor, extra: Tensor | None, tile: slice) -> None:
        """A tile: logits (b, R, n), pixels (b, n, D), and extra values (b, n, P)."""
        blocks, maximum = self.pooling.blocks, None
        if self.pooling.normalize == "pixels":
            maximum = logits.amax(-1)
            if self.state is not None and self.state[0] is not None:
                maximum = torch.maximum(self.state[0], maximum)
            # Where nothing valid has come yet, -inf - -inf would be NaN.
            base = maximum.masked_fill(maximum == -torch.inf, 0)
            weights = torch.exp(logits - base[..., None])
        else:
            weights = self.pooling.weights(logits, tile)
        total, tokens = weights.sum(-1), pool(weights, values, blocks)
        if extra is not None:
            tokens = torch.cat([tokens, torch.bmm(weights, extra)], -1)
        if self.state is not None:
            before, sums, pooled = self.state
            if before is not None:
                rescale = torch.exp(before - base)
                sums, pooled = sums * rescale, pooled * to_channels(rescale, tokens.shape[-1], blocks)
            total, tokens = total.add_(sums), tokens.add_(pooled)
        self.state = maximum, total, tokens

    def result(self) -> tuple[Tensor, Tensor] | None:
        """Tokens (b, L, D + P) and lse or mass (b, R): of an empty row 0, and -inf or 0.

        None if there was no tile.
        """
        if self.state is None:
            return None
        maximum, stats, tokens = self.state
        channels, blocks = tokens.shape[-1], self.pooling.blocks
        if maximum is not None:
            # inf - inf is NaN, but the sum itself is infinite.
            tokens = tokens / to_channels(stats, channels, blocks)
            stats = torch.where(maximum == torch.inf, maximum, torch.log(stats) + maximum)
        empty = self.pooling.empty_rows(stats)
        if empty is not None:
            empty = empty.expand(stats.shape)
            tokens = tokens.masked_fill(to_channels(empty, channels, blocks), 0)
            stats = stats.masked_fill(empty, self.pooling.empty_stat)
        return tokens, stats


class PoolBackward:
    """The backward of pooling for one group of samples.

    With dW = V dT^T (plus dmass), and for "pixels" W = exp(logits - lse), delta = rowsum(dT * T) - dlse and
    dS = W * (dW - delta); other dS are those of :func:`weigh_backward`. Then dV = W dT, dx += dS queries,
    dqueries = dS^T x, dpixel_bias = rowsum(dS), dextra_values = W dT[:, D:].
    """

    def __init__(
        self,
        pooling: Pooling,
        grad_tokens: Tensor,
        grad_stats: Tensor | None,
        tokens: Tensor,
        stats: Tensor,
        channels: int,
    ) -> None:
        blocks = pooling.blocks
        empty = pooling.empty_rows(stats)
        if empty is not None:
            # An empty row has gradients of 0, whatever arrives for its tokens and statistic.
            empty = empty.expand(stats.shape)
            grad_tokens = grad_tokens.masked_fill(to_channels(empty, grad_tokens.shape[-1], blocks), 0)
            grad_stats = None if grad_stats is None else grad_stats.masked_fill(empty, 0)
        self.pooling, self.grad_stats = pooling, grad_stats
        self.grad_tokens, self.grad_extra = grad_tokens[..., :channels], grad_tokens[..., channels:]
        self.lse = self.delta = torch.empty(0)
        if pooling.normalize == "pixels":
            delta = (grad_tokens * tokens).unflatten(-1, (blocks, -1)).sum(-1).mT.flatten(1)
            if grad_stats is not None:
                delta = delta - grad_stats
            if empty is not None:
                stats, delta = stats.masked_fill(empty, 0), delta.masked_fill(empty, 0)
            self.lse, self.delta = stats[..., None], delta[..., None]

    def tile(
        self, values: Tensor, logits: Tensor, extra: Tensor | None, tile: slice
    ) -> tuple[Tensor, Tensor]:
        """W and dS (b, R, n) of a tile. The logits are overwritten."""
        pooling = self.pooling
        grad = products(values, self.grad_tokens, pooling.blocks)
        if extra is not None:
            grad += torch.bmm(self.grad_extra, extra.mT)
        if pooling.normalize == "pixels":
            weights = logits.sub_(self.lse).exp_()
            return weights, grad.sub_(self.delta).mul_(weights)
        if self.grad_stats is not None:
            grad += self.grad_stats[..., None]
        weights = pooling.weights(logits, tile)
        grad = weigh_backward(weights, grad, pooling.normalize, pooling.num_heads, pooling.removed)
        return weights, pooling.keep(grad, tile)

    def grad_values(self, weights: Tensor, out: Tensor) -> Tensor:
        """dV (b, n, D) of a tile, written to ``out``; not yet 0 in invalid pixels."""
        return expand(weights, self.grad_tokens, out, self.pooling.blocks)

    def keep_pixels(self, grad: Tensor, tile: slice) -> Tensor:
        """A gradient (b, n, ..) of a tile with 0 in invalid pixels. In place."""
        valid = self.pooling.valid
        return grad if valid is None else grad.masked_fill_(~valid[:, tile, None], 0)

    def grad_extra_values(self, weights: Tensor) -> Tensor:
        """The gradient (n, P) of a tile of the extra values."""
        return torch.bmm(weights.mT, self.grad_extra).sum(0)

"""tokenize in plain PyTorch: one pass over the map forward, one backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vt_fast.backends.contract import Tokenize, TokenizeBackward, TokenizeGradients, row_count
from vt_fast.backends.eager import tiles
from vt_fast.backends.eager.blocks import blocks_to_rows
from vt_fast.backends.eager.logits import Logits, score_pixels
from vt_fast.backends.eager.pooling import Pool, PoolBackward, Pooling, add_bias, extra_values_tile
from vt_fast.layout import as_pixels, per_pixel
from vt_fast.precision import compute_dtype


def tokenize(call: Tokenize) -> tuple[Tensor, Tensor]:
    """Tokens and their statistics (B, num_heads * L), in the compute dtype."""
    operands, results = _Operands(call), []
    for group in operands.groups():
        running = Pool(group.pooling)
        for tile in group.tiles():
            running.add(tile.logits, tile.pooled, tile.extra, tile.place)
        results.append(running.result() or operands.of_empty_bags(1))
    return tiles.joined(results or [operands.of_empty_bags(0)])


def tokenize_backward(call: TokenizeBackward) -> TokenizeGradients:
    """The gradients that are needed, in one pass over the map."""
    x, extra_values, values, needs = call.x, call.extra_values, call.values, call.needs
    dtype = compute_dtype(x.dtype)
    operands = _Operands(call)
    tiling, logits, bias = operands.tiling, operands.logits, operands.bias
    channels = operands.pooled.shape[2]
    dx = tiles.PixelWriter(x, operands.pixels.shape[2], tiling) if needs[0] else None
    dvalues = tiles.PixelWriter(values, channels, tiling) if values is not None and needs[4] else None
    drows = tiles.OperandGradient(call.queries, 2, needs[1], logits.rows)
    dtoken_bias = tiles.OperandGradient(call.token_bias, 1, needs[6], logits.token_bias)
    dpixel_bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and needs[2] else None
    dextra_values = (
        torch.zeros_like(extra_values, dtype=dtype) if extra_values is not None and needs[3] else None
    )
    dscores = call.scores.new_zeros(call.scores.shape) if call.scores is not None and needs[5] else None
    dscores_pixels = score_pixels(dscores, call.offsets)
    for group in operands.groups():
        samples = group.samples
        backward = PoolBackward(
            group.pooling,
            tiles.rows_of(call.grad_tokens, samples).to(dtype),
            None if call.grad_stats is None else tiles.rows_of(call.grad_stats, samples),
            tiles.rows_of(call.tokens, samples).to(dtype),
            tiles.rows_of(call.stats, samples),
            channels,
        )
        for tile in group.tiles():
            place = tile.place
            weights, grad = backward.tile(tile.pooled, tile.logits, tile.extra, place)
            if dvalues is not None:
                found = backward.grad_values(weights, dvalues.tile(samples, place))
                dvalues.write(samples, place, backward.keep_pixels(found, place))
            if dx is not None:
                found = dx.tile(samples, place)
                if values is None:
                    backward.grad_values(weights, found)
                found = group.logits.grad_pixels(grad, found, add=values is None)
                found = tile.grad_before_norm(found)
                dx.write(samples, place, backward.keep_pixels(found, place))
            if drows.needed:
                drows.add(group.logits.grad_rows(grad, tile.pixels))
            if dtoken_bias.needed and call.normalize != "pixels":
                dtoken_bias.add(grad.sum(-1))
            if dpixel_bias is not None:
                tiling.part(dpixel_bias, samples)[:, place] = grad.sum(1)
            if dextra_values is not None:
                dextra_values[place] += backward.grad_extra_values(weights)
            if dscores_pixels is not None:
                tiling.part(dscores_pixels, samples)[:, place] = grad.mT
        if dtoken_bias.needed and call.normalize == "pixels":
            # Each row of dS sums to what arrives for its lse: the tokens do not depend on the bias.
            arriving = backward.grad_stats
            dtoken_bias.add(torch.zeros_like(call.stats[samples]) if arriving is None else arriving.clone())
        drows.end_group()
        dtoken_bias.end_group()
    dqueries = drows.result()
    return TokenizeGradients(
        x=None if dx is None else dx.finish(),
        queries=None if dqueries is None else blocks_to_rows(dqueries, logits.blocks),
        pixel_bias=dpixel_bias,
        extra_values=dextra_values,
        values=None if dvalues is None else dvalues.finish(),
        scores=dscores,
        token_bias=dtoken_bias.result(),
    )


class _Operands:
    """The operands of a call, as its forward and its backward read them."""

    def __init__(self, call: Tokenize | TokenizeBackward) -> None:
        x, dtype = call.x, compute_dtype(call.x.dtype)
        self.pixels, self.bias = as_pixels(x), per_pixel(call.pixel_bias)
        self.pooled = self.pixels if call.values is None else as_pixels(call.values)
        self.valid = tiles.valid_pixels(per_pixel(call.mask), self.bias)
        self.scores, self.extra_values = score_pixels(call.scores, call.offsets), call.extra_values
        self.logits = Logits.prepare(
            call.queries, call.token_bias, call.num_heads, self.pixels.shape[2], dtype
        )
        self.rows = row_count(call.queries, call.scores, call.offsets)
        self.tiling = tiles.Tiling(self.pixels, self.rows, self.pooled.shape[2], offsets=call.offsets)
        self.layer_norm_eps = call.layer_norm_eps
        self.normalize, self.num_heads = call.normalize, call.num_heads

    def of_empty_bags(self, count: int) -> tuple[Tensor, Tensor]:
        """Tokens and statistics of so many bags without pixels."""
        dtype, blocks = compute_dtype(self.pixels.dtype), self.logits.blocks
        tokens = self.pixels.new_zeros((count, self.rows // blocks, self.pooled.shape[2]), dtype=dtype)
        empty = Pooling(self.normalize).empty_stat
        return tokens, self.pixels.new_full((count, self.rows), empty, dtype=dtype)

    def groups(self) -> Iterator[_Group]:
        for samples in self.tiling.groups():
            logits, valid = self.logits.group(samples), self.tiling.part(self.valid, samples)
            if valid is None and self.tiling.is_empty(samples):
                valid = torch.zeros((1, 0), dtype=torch.bool, device=self.pixels.device)
            pooling = Pooling(
                self.normalize,
                self.num_heads,
                logits.blocks,
                logits.removed,
                valid,
                partial=self.scores is not None,
            )
            yield _Group(self, samples, logits, pooling)


class _Group(NamedTuple):
    """A group of samples."""

    operands: _Operands
    samples: slice
    logits: Logits
    pooling: Pooling

    def tiles(self) -> Iterator[_Tile]:
        """Its pixels, tile by tile."""
        of, samples, valid = self.operands, self.samples, self.pooling.valid
        part = of.tiling.part
        pixels, scores, bias = part(of.pixels, samples), part(of.scores, samples), part(of.bias, samples)
        pooled = pixels if of.pooled is of.pixels else part(of.pooled, samples)
        for place in of.tiling.tiles(samples):
            values, inverse = tiles.read_tile(pixels, place, valid), None
            if of.layer_norm_eps is not None:
                values, inverse = _layer_norm(values, of.layer_norm_eps)
            logits = self.logits.of(values, tiles.read_optional(scores, place, pixels))
            yield _Tile(
                place,
                values,
                values if pooled is pixels else tiles.read_tile(pooled, place, valid),
                add_bias(logits, bias, valid, place),
                extra_values_tile(of.extra_values, valid, place, values),
                inverse,
            )


class _Tile(NamedTuple):
    """A tile at a place among a group's pixels. ``inverse``: 1 / the standard deviation, if normalised."""

    place: slice
    pixels: Tensor
    pooled: Tensor
    logits: Tensor
    extra: Tensor | None
    inverse: Tensor | None

    def grad_before_norm(self, grad: Tensor) -> Tensor:
        """From the gradient of the pixels to that of the map. In place."""
        if self.inverse is None:
            return grad
        along = (grad * self.pixels).mean(-1, keepdim=True)
        return (
            grad.sub_(grad.mean(-1, keepdim=True)).addcmul_(self.pixels, along, value=-1).mul_(self.inverse)
        )


def _layer_norm(values: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Pixels with mean 0 and variance 1, and what they were multiplied with."""
    centred = values - values.mean(-1, keepdim=True)
    inverse = centred.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return centred.mul_(inverse), inverse

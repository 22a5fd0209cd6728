"""project_tokenize in plain PyTorch: a tile is projected and tokenized while it is at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.contract import (
    ProjectTokenize,
    ProjectTokenizeBackward,
    ProjectTokenizeGradients,
)
from vt_fast.backends.eager import tiles
from vt_fast.backends.eager.blocks import expand, scores
from vt_fast.backends.eager.pixel_softmax import (
    PixelSoftmax,
    PixelSoftmaxBackward,
    add_bias,
    extra_values_tile,
)
from vt_fast.backends.eager.token_softmax import TokenSoftmax, TokenSoftmaxBackward, residual_pixels
from vt_fast.layout import as_pixels, per_pixel
from vt_fast.precision import compute_dtype


def project_tokenize(call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
    """The map (None unless wanted), its tokens (B, Lq, D + P) and lse (B, Lq) in the compute dtype."""
    pixels, bias = as_pixels(call.x), per_pixel(call.pixel_bias)
    added = residual_pixels(pixels, call.residual, call.residual_is_input)
    valid = tiles.valid_pixels(per_pixel(call.mask), bias)
    softmax = TokenSoftmax.prepare(call.keys, call.values, call.token_bias, call.num_heads)
    blocks = tiles.batched(call.queries.to(compute_dtype(call.x.dtype)), 2)
    channels = call.values.shape[-1]
    out = tiles.PixelWriter(call.x, channels) if call.return_map else None
    tiling = tiles.Tiling(pixels, call.keys.shape[-2], channels, call.queries.shape[-2])
    results = []
    for samples in tiling.groups():
        group, group_residual, group_softmax = (
            pixels[samples],
            tiles.part(added, samples),
            softmax.group(samples),
        )
        group_valid, group_bias = tiles.part(valid, samples), tiles.part(bias, samples)
        rows, running = tiles.rows_of(blocks, samples), PixelSoftmax(1, group_valid)
        for tile in tiling.tiles(samples):
            values = tiles.read_tile(group, tile)
            attention = group_softmax.attention(values)
            target = tiles.empty_tile(values, channels) if out is None else out.tile(samples, tile)
            y = group_softmax.output(attention, group_residual, tile, target)
            if out is not None:
                out.write(samples, tile, y)
            y = y if group_valid is None else tiles.keep_valid(y, group_valid, tile)
            logits = add_bias(scores(y, rows), group_bias, group_valid, tile)
            running.add(logits, y, extra_values_tile(call.extra_values, group_valid, tile, y))
        results.append(running.result())
    tokens, lse = (torch.cat(parts) for parts in zip(*results, strict=True))
    return None if out is None else out.finish(), tokens, lse


def project_tokenize_backward(call: ProjectTokenizeBackward) -> ProjectTokenizeGradients:
    """The gradients that are needed, in one pass over the map x and the gradient of the map Y.

    Y is recomputed; with H = grad_map + (tokenize's dx at Y), the rest is project's backward with H for
    its gradient.
    """
    x, residual, extra_values, needs = call.x, call.residual, call.extra_values, call.needs
    dtype, channels = compute_dtype(x.dtype), call.values.shape[-1]
    pixels, bias = as_pixels(x), per_pixel(call.pixel_bias)
    added = residual_pixels(pixels, residual, call.residual_is_input)
    grads = None if call.grad_map is None else as_pixels(call.grad_map)
    valid = tiles.valid_pixels(per_pixel(call.mask), bias)
    softmax = TokenSoftmax.prepare(call.keys, call.values, call.token_bias, call.num_heads)
    token_backward = TokenSoftmaxBackward(
        call.keys, call.values, call.token_bias, [needs[1], needs[2], needs[4]]
    )
    blocks = tiles.batched(call.queries.to(dtype), 2)
    pixel_backward = PixelSoftmaxBackward(
        call.grad_tokens.to(dtype), call.grad_lse, call.tokens.to(dtype), call.lse, valid, channels, 1
    )
    dx = tiles.PixelWriter(x, pixels.shape[2]) if needs[0] else None
    dqueries = tiles.OperandGradient(call.queries, 2, needs[3])
    dresidual = tiles.PixelWriter(residual, channels) if residual is not None and needs[5] else None
    dpixel_bias = torch.empty_like(bias, dtype=dtype) if bias is not None and needs[6] else None
    dextra_values = (
        torch.zeros_like(extra_values, dtype=dtype) if extra_values is not None and needs[7] else None
    )
    tiling = tiles.Tiling(pixels, call.keys.shape[-2], channels, call.queries.shape[-2])
    for samples in tiling.groups():
        group, group_residual, group_grads = (
            pixels[samples],
            tiles.part(added, samples),
            tiles.part(grads, samples),
        )
        group_valid, group_bias = tiles.part(valid, samples), tiles.part(bias, samples)
        group_softmax = softmax.group(samples)
        pooled = pixel_backward.group(tiles.rows_of(blocks, samples), samples)
        for tile in tiling.tiles(samples):
            values = tiles.read_tile(group, tile)
            if group_valid is not None:
                values = values.masked_fill(~_used(group_valid, group_grads, tile)[..., None], 0)
            attention = group_softmax.attention(values)
            y = group_softmax.output(attention, group_residual, tile, tiles.empty_tile(values, channels))
            y = y if group_valid is None else tiles.keep_valid(y, group_valid, tile)
            logits = add_bias(scores(y, pooled.blocks), group_bias, group_valid, tile)
            pooling, grad = pooled.tile(y, logits, extra_values_tile(extra_values, group_valid, tile, y))
            target = tiles.empty_tile(y) if dresidual is None else dresidual.tile(samples, tile)
            grad_y = pooled.grad_pixels(pooling, grad, group_valid, tile, target)
            if group_grads is not None:
                grad_y += group_grads[:, tile]
            grad_logits = token_backward.tile(group_softmax, values, attention, grad_y)
            if dqueries.needed:
                dqueries.add(pooled.grad_blocks(grad, y))
            if dresidual is not None:
                dresidual.write(samples, tile, grad_y)
            if dpixel_bias is not None:
                dpixel_bias[samples, tile] = grad.sum(1)
            if dextra_values is not None:
                dextra_values[tile] += pooled.grad_extra_values(pooling)
            if dx is not None:
                target = expand(grad_logits, group_softmax.keys, dx.tile(samples, tile))
                dx.write(samples, tile, target.add_(grad_y) if call.residual_is_input else target)
        token_backward.end_group()
        dqueries.end_group()
    dkeys, dvalues, dtoken_bias = token_backward.result()
    return ProjectTokenizeGradients(
        x=None if dx is None else dx.finish(),
        keys=dkeys,
        values=dvalues,
        queries=dqueries.result(),
        token_bias=dtoken_bias,
        residual=None if dresidual is None else dresidual.finish(),
        pixel_bias=dpixel_bias,
        extra_values=dextra_values,
    )


def _used(valid: Tensor, grads: Tensor | None, tile: slice) -> Tensor:
    """(b, n): the pixels of a tile that the result depended on.

    Those that are tokenized, and those of the map through which a gradient arrives. What any other
    pixel holds must not matter, even if it is NaN.
    """
    used = valid[:, tile]
    return used if grads is None else used | (grads[:, tile] != 0).any(2)

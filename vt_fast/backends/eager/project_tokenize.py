"""project_tokenize in plain PyTorch: a tile is projected and tokenized while it is at hand."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from vt_fast.backends.contract import (
    ProjectTokenize,
    ProjectTokenizeBackward,
    ProjectTokenizeGradients,
)
from vt_fast.backends.eager import tiles
from vt_fast.backends.eager.blocks import expand, pool, products
from vt_fast.backends.eager.pooling import Pool, PoolBackward, Pooling, add_bias, extra_values_tile
from vt_fast.backends.eager.spreading import Spread, SpreadBackward, residual_pixels
from vt_fast.layout import as_pixels, per_pixel
from vt_fast.precision import compute_dtype


def project_tokenize(call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
    """The map (None unless wanted), its tokens (B, Lq, D + P) and lse (B, Lq) in the compute dtype."""
    pixels, bias = as_pixels(call.x), per_pixel(call.pixel_bias)
    added = residual_pixels(pixels, call.residual, call.residual_is_input)
    valid = tiles.valid_pixels(per_pixel(call.mask), bias)
    spread = Spread.prepare(call)
    rows = tiles.batched(call.queries.to(compute_dtype(call.x.dtype)), 2)
    channels = call.values.shape[-1]
    tiling = tiles.Tiling(pixels, call.keys.shape[-2], channels, call.queries.shape[-2])
    out = tiles.PixelWriter(call.x, channels, tiling) if call.return_map else None
    results = []
    for samples in tiling.groups():
        group, group_residual = tiling.part(pixels, samples), tiling.part(added, samples)
        group_valid, group_bias = tiling.part(valid, samples), tiling.part(bias, samples)
        group_spread, group_rows = spread.group(samples), tiles.rows_of(rows, samples)
        running = Pool(Pooling(valid=group_valid))
        for tile in tiling.tiles(samples):
            values = tiles.read_tile(group, tile)
            weights = group_spread.weights(values)
            target = tiles.empty_tile(values, channels) if out is None else out.tile(samples, tile)
            y = group_spread.output(weights, group_residual, tile, target)
            if out is not None:
                out.write(samples, tile, y)
            y = y if group_valid is None else tiles.keep_valid(y, group_valid, tile)
            logits = add_bias(products(y, group_rows), group_bias, group_valid, tile)
            running.add(logits, y, extra_values_tile(call.extra_values, group_valid, tile, y), tile)
        results.append(cast(tuple[Tensor, Tensor], running.result()))  # each group has a tile
    tokens, lse = tiles.joined(results)
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
    spread = Spread.prepare(call)
    spread_backward = SpreadBackward(call, spread, [needs[1], needs[2], needs[4]])
    rows = tiles.batched(call.queries.to(dtype), 2)
    tiling = tiles.Tiling(pixels, call.keys.shape[-2], channels, call.queries.shape[-2])
    dx = tiles.PixelWriter(x, pixels.shape[2], tiling) if needs[0] else None
    dqueries = tiles.OperandGradient(call.queries, 2, needs[3])
    dresidual = tiles.PixelWriter(residual, channels, tiling) if residual is not None and needs[5] else None
    dpixel_bias = torch.empty_like(bias, dtype=dtype) if bias is not None and needs[6] else None
    dextra_values = (
        torch.zeros_like(extra_values, dtype=dtype) if extra_values is not None and needs[7] else None
    )
    for samples in tiling.groups():
        group, group_residual = tiling.part(pixels, samples), tiling.part(added, samples)
        group_valid, group_bias = tiling.part(valid, samples), tiling.part(bias, samples)
        group_grads, group_spread = tiling.part(grads, samples), spread.group(samples)
        group_rows = tiles.rows_of(rows, samples)
        pooled = PoolBackward(
            Pooling(valid=group_valid),
            call.grad_tokens[samples].to(dtype),
            None if call.grad_lse is None else call.grad_lse[samples],
            call.tokens[samples].to(dtype),
            call.lse[samples],
            channels,
        )
        for tile in tiling.tiles(samples):
            values = tiles.read_tile(group, tile)
            if group_valid is not None:
                values = values.masked_fill(~_used(group_valid, group_grads, tile)[..., None], 0)
            weights = group_spread.weights(values)
            y = group_spread.output(weights, group_residual, tile, tiles.empty_tile(values, channels))
            y = y if group_valid is None else tiles.keep_valid(y, group_valid, tile)
            logits = add_bias(products(y, group_rows), group_bias, group_valid, tile)
            extra = extra_values_tile(extra_values, group_valid, tile, y)
            attention, grad = pooled.tile(y, logits, extra, tile)
            target = tiles.empty_tile(y) if dresidual is None else dresidual.tile(samples, tile)
            grad_y = expand(grad, group_rows, pooled.grad_values(attention, target), add=True)
            grad_y = pooled.keep_pixels(grad_y, tile)
            if group_grads is not None:
                grad_y += group_grads[:, tile]
            grad_logits = spread_backward.tile(group_spread, values, weights, grad_y)
            if dqueries.needed:
                dqueries.add(pool(grad, y))
            if dresidual is not None:
                dresidual.write(samples, tile, grad_y)
            if dpixel_bias is not None:
                dpixel_bias[samples, tile] = grad.sum(1)
            if dextra_values is not None:
                dextra_values[tile] += pooled.grad_extra_values(attention)
            if dx is not None:
                target = group_spread.logits.grad_pixels(grad_logits, dx.tile(samples, tile), add=False)
                dx.write(samples, tile, target.add_(grad_y) if call.residual_is_input else target)
        spread_backward.end_group()
        dqueries.end_group()
    dkeys, dvalues, dtoken_bias = spread_backward.result()
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

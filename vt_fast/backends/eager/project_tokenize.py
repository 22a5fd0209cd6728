"""project_tokenize in plain PyTorch: a tile is projected and tokenized while it is at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.eager.blocks import expand, scores
from vt_fast.backends.eager.pooling import Pool, PoolBackward, table_tile, weigh
from vt_fast.backends.eager.spreading import Spread, SpreadBackward
from vt_fast.backends.eager.tiles import (
    OperandGradient,
    PixelWriter,
    batched,
    compute_dtype,
    keep_valid,
    part,
    pixel_tiles,
    read_tile,
    rows_of,
    sample_groups,
    valid_pixels,
)
from vt_fast.layout import as_pixels, per_pixel


def project_tokenize(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    residual_input: bool,
    heads: int,
    return_map: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The map (None if not wanted), its tokens (B, L, D + P), not rounded to x's dtype, and their lse."""
    pixels, weights = as_pixels(x), per_pixel(log_weights)
    skip = pixels if residual_input else None if residual is None else as_pixels(residual)
    valid = valid_pixels(per_pixel(mask), weights)
    spread = Spread.prepare(keys, values, bias, heads)
    blocks = batched(queries.to(compute_dtype(x.dtype)), 2)
    out = PixelWriter(x, values.shape[-1]) if return_map else None
    results = []
    for samples in sample_groups(pixels):
        group, group_skip, tokens = pixels[samples], part(skip, samples), spread.group(samples)
        group_valid, group_weights = part(valid, samples), part(weights, samples)
        running = Pool(1)
        for tile in pixel_tiles(group):
            attention = tokens.attention(read_tile(group, tile))
            y = tokens.output(attention, None if group_skip is None else group_skip[:, tile])
            if out is not None:
                out.write(samples, tile, y)
            y = y if group_valid is None else keep_valid(y, group_valid, tile)
            logits = weigh(scores(y, rows_of(blocks, samples)), group_weights, group_valid, tile)
            running.add(logits, y, table_tile(position, group_valid, tile, y))
        results.append(running.result())
    tokens_out, lse = (torch.cat(parts) for parts in zip(*results, strict=True))
    return None if out is None else out.finish(), tokens_out, lse


def project_tokenize_backward(
    grad_map: Tensor | None,
    grad_tokens: Tensor,
    grad_lse: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    tokens: Tensor,
    lse: Tensor,
    residual_input: bool,
    heads: int,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, keys, values, queries, bias, residual, log_weights and position.

    None where ``needs`` says so; small ones come in the compute dtype. The map is recomputed; with
    H = grad_map + (tokenize's dx at the map), the rest is project's backward with H for its gradient.
    """
    dtype = compute_dtype(x.dtype)
    pixels, weights, channels = as_pixels(x), per_pixel(log_weights), values.shape[-1]
    skip = pixels if residual_input else None if residual is None else as_pixels(residual)
    grads = None if grad_map is None else as_pixels(grad_map)
    valid = valid_pixels(per_pixel(mask), weights)
    # Without a gradient of the map a masked pixel is not used at all, whatever it holds.
    read_valid = valid if grad_map is None else None
    spread = Spread.prepare(keys, values, bias, heads)
    blocks = batched(queries.to(dtype), 2)
    spread_backward = SpreadBackward(keys, values, bias, [needs[1], needs[2], needs[4]])
    pool_backward = PoolBackward(grad_tokens.to(dtype), grad_lse, tokens.to(dtype), lse, channels, 1)
    dx = PixelWriter(x, pixels.shape[2]) if needs[0] else None
    dqueries = OperandGradient(queries, 2, needs[3])
    dresidual = PixelWriter(residual, channels) if residual is not None and needs[5] else None
    dweights = torch.empty_like(weights, dtype=dtype) if weights is not None and needs[6] else None
    dposition = torch.zeros_like(position, dtype=dtype) if position is not None and needs[7] else None
    for samples in sample_groups(pixels):
        group, group_skip, group_spread = pixels[samples], part(skip, samples), spread.group(samples)
        group_valid, group_weights, group_grads = (
            part(valid, samples),
            part(weights, samples),
            part(grads, samples),
        )
        pooled = pool_backward.group(rows_of(blocks, samples), samples)
        for tile in pixel_tiles(group):
            pixel_values = read_tile(group, tile, part(read_valid, samples))
            attention = group_spread.attention(pixel_values)
            y = group_spread.output(attention, None if group_skip is None else group_skip[:, tile])
            y = y if group_valid is None else keep_valid(y, group_valid, tile)
            logits = weigh(scores(y, pooled.blocks), group_weights, group_valid, tile)
            weight, grad = pooled.tile(y, logits, table_tile(position, group_valid, tile, y))
            grad_y = pooled.grad_pixels(weight, grad, group_valid, tile)
            if group_grads is not None:
                grad_y += group_grads[:, tile]
            grad_logits = spread_backward.tile(group_spread, pixel_values, attention, grad_y)
            if dx is not None:
                dx_tile = expand(grad_logits, group_spread.keys)
                dx.write(samples, tile, dx_tile.add_(grad_y) if residual_input else dx_tile)
            if dqueries.needed:
                dqueries.add(pooled.grad_blocks(grad, y))
            if dresidual is not None:
                dresidual.write(samples, tile, grad_y)
            if dweights is not None:
                dweights[samples, tile] = grad.sum(1)
            if dposition is not None:
                dposition[tile] += pooled.grad_position(weight)
        spread_backward.end_group()
        dqueries.end_group()
    dkeys, dvalues, dbias = spread_backward.result()
    return (
        None if dx is None else dx.finish(),
        dkeys,
        dvalues,
        dqueries.result(),
        dbias,
        None if dresidual is None else dresidual.finish(),
        dweights,
        dposition,
    )

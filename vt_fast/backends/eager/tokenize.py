"""tokenize in plain PyTorch: one pass over the map forward, one backward."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.contract import Tokenize, TokenizeBackward, TokenizeGradients
from vt_fast.backends.eager import tiles
from vt_fast.backends.eager.blocks import blocks_to_head_rows, head_rows_to_blocks, scores
from vt_fast.backends.eager.pixel_softmax import (
    PixelSoftmax,
    PixelSoftmaxBackward,
    add_bias,
    extra_values_tile,
)
from vt_fast.layout import as_pixels, per_pixel
from vt_fast.precision import compute_dtype


def tokenize(call: Tokenize) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, C + P) and lse (B, num_heads * L), in the compute dtype."""
    pixels, bias = as_pixels(call.x), per_pixel(call.pixel_bias)
    valid = tiles.valid_pixels(per_pixel(call.mask), bias)
    queries = call.queries.to(compute_dtype(call.x.dtype))
    blocks = tiles.batched(head_rows_to_blocks(queries, call.num_heads), 2)
    tiling, results = tiles.Tiling(pixels, queries.shape[-2]), []
    for samples in tiling.groups():
        group, rows = pixels[samples], tiles.rows_of(blocks, samples)
        group_valid, group_bias = tiles.part(valid, samples), tiles.part(bias, samples)
        running = PixelSoftmax(call.num_heads, group_valid)
        for tile in tiling.tiles(samples):
            values = tiles.read_tile(group, tile, group_valid)
            logits = add_bias(scores(values, rows, call.num_heads), group_bias, group_valid, tile)
            running.add(logits, values, extra_values_tile(call.extra_values, group_valid, tile, values))
        results.append(running.result())
    return torch.cat([tokens for tokens, _ in results]), torch.cat([lse for _, lse in results])


def tokenize_backward(call: TokenizeBackward) -> TokenizeGradients:
    """The gradients that are needed, in one pass over the map."""
    x, extra_values, num_heads, needs = call.x, call.extra_values, call.num_heads, call.needs
    dtype = compute_dtype(x.dtype)
    pixels, bias = as_pixels(x), per_pixel(call.pixel_bias)
    valid = tiles.valid_pixels(per_pixel(call.mask), bias)
    blocks = tiles.batched(head_rows_to_blocks(call.queries.to(dtype), num_heads), 2)
    dx = tiles.PixelWriter(x, pixels.shape[2]) if needs[0] else None
    dblocks = tiles.OperandGradient(call.queries, 2, needs[1])
    dpixel_bias = torch.empty_like(bias, dtype=dtype) if bias is not None and needs[2] else None
    dextra_values = (
        torch.zeros_like(extra_values, dtype=dtype) if extra_values is not None and needs[3] else None
    )
    backward = PixelSoftmaxBackward(
        call.grad_tokens.to(dtype),
        call.grad_lse,
        call.tokens.to(dtype),
        call.lse,
        valid,
        pixels.shape[2],
        num_heads,
    )
    tiling = tiles.Tiling(pixels, call.queries.shape[-2])
    for samples in tiling.groups():
        group, pooled = pixels[samples], backward.group(tiles.rows_of(blocks, samples), samples)
        group_valid, group_bias = tiles.part(valid, samples), tiles.part(bias, samples)
        for tile in tiling.tiles(samples):
            values = tiles.read_tile(group, tile, group_valid)
            logits = add_bias(scores(values, pooled.blocks, num_heads), group_bias, group_valid, tile)
            attention, grad = pooled.tile(
                values, logits, extra_values_tile(extra_values, group_valid, tile, values)
            )
            if dx is not None:
                target = dx.tile(samples, tile)
                dx.write(samples, tile, pooled.grad_pixels(attention, grad, group_valid, tile, target))
            if dblocks.needed:
                dblocks.add(pooled.grad_blocks(grad, values))
            if dpixel_bias is not None:
                dpixel_bias[samples, tile] = grad.sum(1)
            if dextra_values is not None:
                dextra_values[tile] += pooled.grad_extra_values(attention)
        dblocks.end_group()
    dqueries = dblocks.result()
    return TokenizeGradients(
        x=None if dx is None else dx.finish(),
        queries=None if dqueries is None else blocks_to_head_rows(dqueries, num_heads),
        pixel_bias=dpixel_bias,
        extra_values=dextra_values,
    )

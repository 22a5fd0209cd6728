"""project forward: one program for each tile of pixels."""

import triton
import triton.language as tl

from vt_fast.kernels.attention import load_bias, load_values, padded_rows, softmax_over_tokens
from vt_fast.kernels.tiles import (
    channel_offsets,
    load_rows,
    load_tile,
    pixel_offsets,
    product,
    store_tile,
)


@triton.jit
def project_forward(
    x,
    x_batch,
    x_row,
    x_column,
    x_channel,
    keys,
    keys_batch,
    values,
    values_batch,
    bias,
    bias_batch,
    residual,
    r_batch,
    r_row,
    r_column,
    r_channel,
    y,
    y_batch,
    y_row,
    y_column,
    y_channel,
    pixels,
    width,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    PIXEL_ALIGN: tl.constexpr,
    R_LAYOUT: tl.constexpr,
    Y_LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    TOKENS_PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    ACC: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: (tiles of pixels, B).

    keys (B?, HEADS * TOKENS, CHANNELS), values (B?, TOKENS, OUT_CHANNELS), bias (B?, HEADS * TOKENS).
    KEEP: the map's tile stays on the chip until it is added as the residual.
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    OUT_CHUNKS: tl.constexpr = (OUT_CHANNELS + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0
    OUT_RAGGED: tl.constexpr = OUT_CHANNELS % CHUNK != 0
    sample = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHUNK)
    head, token, row_ok = padded_rows(HEADS, HEADS_PADDED, TOKENS, TOKENS_PADDED)
    row = head * TOKENS + token
    x += sample * x_batch * ALIGN
    residual += sample * r_batch * ALIGN
    y += sample * y_batch * ALIGN
    keys += sample * keys_batch
    values += sample * values_batch
    row_bias = load_bias(bias + sample * bias_batch, head, token, row_ok, HAS_BIAS, TOKENS, ACC)
    row_ok = row_bias != -float("inf")  # what a removed row holds must not be looked at
    pixels *= PIXEL_ALIGN
    n = tl.program_id(0) * TILE + tl.arange(0, TILE)
    ok = n < pixels
    if WIDE:
        n = n.to(tl.int64)
    at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)

    scores = tl.zeros((TILE, HEADS_PADDED * TOKENS_PADDED), ACC)
    tiles = ()
    if KEEP:
        for i in tl.static_range(CHUNKS):
            k = i * CHUNK + c
            rows = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
            across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
            tile = load_tile(x, at, across, ok, k < CHANNELS, RAGGED)
            scores = product(tile, rows, scores, PRECISION, WIDEN)
            tiles = tiles + (tile,)
    else:
        for i in tl.range(CHUNKS):
            k = i * CHUNK + c
            rows = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
            across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
            tile = load_tile(x, at, across, ok, k < CHANNELS, RAGGED)
            scores = product(tile, rows, scores, PRECISION, WIDEN)
    weights = softmax_over_tokens(scores, row_bias, HEADS_PADDED, TOKENS_PADDED, LIMIT)
    weights = weights.to(x.dtype.element_ty)

    from_residual = pixel_offsets(n, width, r_row, r_column, R_LAYOUT, ALIGN)
    to = pixel_offsets(n, width, y_row, y_column, Y_LAYOUT, ALIGN)
    if KEEP:
        for i in tl.static_range(CHUNKS):
            k = i * CHUNK + c
            rows = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_CHANNELS)
            out = tl.zeros((TILE, CHUNK), ACC)
            out = product(weights, tl.trans(rows), out, PRECISION, WIDEN) + tiles[i].to(ACC)
            across = channel_offsets(k, y_channel, Y_LAYOUT, ALIGN)
            store_tile(y, to, across, ok, k < CHANNELS, out, RAGGED)
    else:
        # Backwards: what was read last is in the cache.
        for j in tl.range(OUT_CHUNKS):
            k = (OUT_CHUNKS - 1 - j) * CHUNK + c
            rows = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_CHANNELS)
            out = tl.zeros((TILE, CHUNK), ACC)
            out = product(weights, tl.trans(rows), out, PRECISION, WIDEN)
            if RESIDUAL_INPUT:
                across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
                out += load_tile(x, at, across, ok, k < OUT_CHANNELS, OUT_RAGGED).to(ACC)
            if HAS_RESIDUAL:
                across = channel_offsets(k, r_channel, R_LAYOUT, ALIGN)
                out += load_tile(residual, from_residual, across, ok, k < OUT_CHANNELS, OUT_RAGGED).to(ACC)
            across = channel_offsets(k, y_channel, Y_LAYOUT, ALIGN)
            store_tile(y, to, across, ok, k < OUT_CHANNELS, out, OUT_RAGGED)

"""project forward: one program for each tile of pixels."""

import triton
import triton.language as tl

from vt_fast.kernels.attention import load_bias, load_values, padded_rows, softmax_over_tokens
from vt_fast.kernels.tiles import SIZES, indices, load_chunk, load_rows, pixel_offsets, product, store_chunk


@triton.jit(do_not_specialize=SIZES)
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
    token_bias,
    token_bias_batch,
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
    HAS_TOKEN_BIAS: tl.constexpr,
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
    """Grid: tiles of pixels x B.

    keys (B?, HEADS * TOKENS, CHANNELS), values (B?, TOKENS, OUT_CHANNELS), bias (B?, HEADS * TOKENS).
    KEEP: the map's tile stays on the chip until it is added as the residual, which it must be.
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    OUT_CHUNKS: tl.constexpr = (OUT_CHANNELS + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0
    OUT_RAGGED: tl.constexpr = OUT_CHANNELS % CHUNK != 0
    pixels *= PIXEL_ALIGN
    tiles_each = (pixels + TILE - 1) // TILE
    program = tl.program_id(0)
    sample = (program // tiles_each).to(tl.int64)
    c = indices(CHUNK, WIDE)
    head, token, row_ok = padded_rows(HEADS, HEADS_PADDED, TOKENS, TOKENS_PADDED)
    row = head * TOKENS + token
    x += sample * x_batch * ALIGN
    residual += sample * r_batch * ALIGN
    y += sample * y_batch * ALIGN
    keys += sample * keys_batch
    values += sample * values_batch
    row_bias = load_bias(
        token_bias + sample * token_bias_batch, head, token, row_ok, HAS_TOKEN_BIAS, TOKENS, ACC
    )
    row_ok = row_bias != -float("inf")  # what a removed row holds must not be looked at
    n = program % tiles_each * TILE + indices(TILE, WIDE)
    ok = n < pixels
    at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)

    scores = tl.zeros((TILE, HEADS_PADDED * TOKENS_PADDED), ACC)
    tiles = ()
    if KEEP:
        for i in tl.static_range(CHUNKS):
            k = i * CHUNK + c
            tile = load_chunk(x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED)
            key = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
            scores = product(tile, key, scores, PRECISION, WIDEN)
            tiles = tiles + (tile,)
    else:
        for m in tl.range(CHUNKS):
            k = m * CHUNK + c
            tile = load_chunk(x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED)
            key = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
            scores = product(tile, key, scores, PRECISION, WIDEN)
    weights = softmax_over_tokens(scores, row_bias, HEADS_PADDED, TOKENS_PADDED, LIMIT)
    weights = weights.to(x.dtype.element_ty)

    from_residual = pixel_offsets(n, width, r_row, r_column, R_LAYOUT, ALIGN)
    to = pixel_offsets(n, width, y_row, y_column, Y_LAYOUT, ALIGN)
    if KEEP:
        for i in tl.static_range(CHUNKS):
            k = i * CHUNK + c
            value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_RAGGED)
            out = tl.zeros((TILE, CHUNK), ACC)
            out = product(weights, tl.trans(value), out, PRECISION, WIDEN) + tiles[i].to(ACC)
            store_chunk(y, to, k, y_channel, ok, out, OUT_CHANNELS, Y_LAYOUT, ALIGN, OUT_RAGGED)
    else:
        # Backwards: what was read last is in the cache.
        for j in tl.range(OUT_CHUNKS):
            k = (OUT_CHUNKS - 1 - j) * CHUNK + c
            value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_RAGGED)
            out = tl.zeros((TILE, CHUNK), ACC)
            out = product(weights, tl.trans(value), out, PRECISION, WIDEN)
            if RESIDUAL_INPUT:
                out += load_chunk(x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED).to(ACC)
            if HAS_RESIDUAL:
                out += load_chunk(
                    residual, from_residual, k, r_channel, ok, OUT_CHANNELS, R_LAYOUT, ALIGN, OUT_RAGGED
                ).to(ACC)
            store_chunk(y, to, k, y_channel, ok, out, OUT_CHANNELS, Y_LAYOUT, ALIGN, OUT_RAGGED)

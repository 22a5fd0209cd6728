"""project backward: one pass over the map and its result's gradient."""

import triton
import triton.language as tl

from vt_fast.kernels.attention import (
    load_bias,
    load_values,
    padded_rows,
    softmax_over_tokens,
    softmax_over_tokens_backward,
)
from vt_fast.kernels.tiles import (
    channel_offsets,
    load_rows,
    load_tile,
    pixel_offsets,
    product,
    store_tile,
)


@triton.jit
def project_backward(
    grad,
    g_batch,
    g_row,
    g_column,
    g_channel,
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
    dx,
    dx_batch,
    dx_row,
    dx_column,
    dx_channel,
    part_dkeys,
    part_dvalues,
    part_dbias,
    pixels,
    width,
    per_split,
    G_LAYOUT: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    PIXEL_ALIGN: tl.constexpr,
    DX_LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    TOKENS_PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_KEYS: tl.constexpr,
    NEEDS_VALUES: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: (splits, B, blocks of OWN chunks of the channels of x and of the result).

    part_dkeys (splits, B, HEADS * TOKENS, CHANNELS), part_dvalues (splits, B, TOKENS, OUT_CHANNELS),
    part_dbias (splits, B, HEADS * TOKENS).
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    OUT_CHUNKS: tl.constexpr = (OUT_CHANNELS + CHUNK - 1) // CHUNK
    ROWS: tl.constexpr = HEADS_PADDED * TOKENS_PADDED
    split = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    block = tl.program_id(2)
    c = tl.arange(0, CHUNK)
    head, token, row_ok = padded_rows(HEADS, HEADS_PADDED, TOKENS, TOKENS_PADDED)
    row = head * TOKENS + token
    is_row = row_ok
    x += sample * x_batch * ALIGN
    grad += sample * g_batch * ALIGN
    dx += sample * dx_batch * ALIGN
    keys += sample * keys_batch
    values += sample * values_batch
    row_bias = load_bias(bias + sample * bias_batch, head, token, row_ok, HAS_BIAS, TOKENS, ACC)
    row_ok = row_bias != -float("inf")  # what a removed row holds must not be looked at
    pixels *= PIXEL_ALIGN

    dkeys = ()
    dvalues = ()
    for i in tl.static_range(OWN):
        dkeys = dkeys + (tl.zeros((CHUNK, ROWS), ACC),)
        dvalues = dvalues + (tl.zeros((CHUNK, ROWS), ACC),)
    dbias = tl.zeros((ROWS,), ACC)
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n = start + tl.arange(0, TILE)
        ok = n < end
        if WIDE:
            n = n.to(tl.int64)
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)
        from_grad = pixel_offsets(n, width, g_row, g_column, G_LAYOUT, ALIGN)
        scores = tl.zeros((TILE, ROWS), ACC)
        for i in tl.range(CHUNKS):
            k = i * CHUNK + c
            across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
            tile = load_tile(x, at, across, ok, k < CHANNELS, True)
            rows = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, True)
            scores = product(tile, rows, scores, PRECISION, WIDEN)
        grads = tl.zeros((TILE, ROWS), ACC)
        for i in tl.range(OUT_CHUNKS):
            k = i * CHUNK + c
            across = channel_offsets(k, g_channel, G_LAYOUT, ALIGN)
            tile = load_tile(grad, from_grad, across, ok, k < OUT_CHANNELS, True)
            rows = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_CHANNELS)
            grads = product(tile, rows, grads, PRECISION, WIDEN)
        weights = softmax_over_tokens(scores, row_bias, HEADS_PADDED, TOKENS_PADDED, LIMIT)
        inner = softmax_over_tokens_backward(weights, grads, HEADS_PADDED, TOKENS_PADDED)
        weights = tl.where(ok[:, None], weights, 0.0)
        inner = tl.where(ok[:, None], inner, 0.0)
        if NEEDS_BIAS:
            dbias += tl.sum(inner, 0)
        weights = weights.to(x.dtype.element_ty)
        inner = inner.to(x.dtype.element_ty)

        to = pixel_offsets(n, width, dx_row, dx_column, DX_LAYOUT, ALIGN)
        more_keys = ()
        more_values = ()
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
            from_across = channel_offsets(k, g_channel, G_LAYOUT, ALIGN)
            if NEEDS_VALUES or RESIDUAL_INPUT:
                arriving = load_tile(grad, from_grad, from_across, ok, k < OUT_CHANNELS, True)
            if NEEDS_X:
                rows = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, True)
                out = tl.zeros((TILE, CHUNK), ACC)
                out = product(inner, tl.trans(rows), out, PRECISION, WIDEN)
                if RESIDUAL_INPUT:
                    out += arriving.to(ACC)
                to_across = channel_offsets(k, dx_channel, DX_LAYOUT, ALIGN)
                store_tile(dx, to, to_across, ok, k < CHANNELS, out, True)
            if NEEDS_KEYS:
                tile = load_tile(x, at, across, ok, k < CHANNELS, True)
                more_keys = more_keys + (product(tl.trans(tile), inner, dkeys[i], PRECISION, WIDEN),)
            if NEEDS_VALUES:
                more_values = more_values + (
                    product(tl.trans(arriving), weights, dvalues[i], PRECISION, WIDEN),
                )
        if NEEDS_KEYS:
            dkeys = more_keys
        if NEEDS_VALUES:
            dvalues = more_values

    part = split.to(tl.int64) * tl.num_programs(1) + sample
    for i in tl.static_range(OWN):
        k = (block * OWN + i) * CHUNK + c
        if NEEDS_KEYS:
            to_rows = part_dkeys + part * (HEADS * TOKENS * CHANNELS) + row[None, :] * CHANNELS + k[:, None]
            tl.store(to_rows, dkeys[i], mask=(k < CHANNELS)[:, None] & is_row[None, :])
        if NEEDS_VALUES:
            own = (k < OUT_CHANNELS)[:, None] & is_row[None, :]
            if HEADS > 1:
                own = own & ((k // (OUT_CHANNELS // HEADS))[:, None] == head[None, :])
            to_rows = part_dvalues + part * (TOKENS * OUT_CHANNELS)
            to_rows += token[None, :] * OUT_CHANNELS + k[:, None]
            tl.store(to_rows, dvalues[i], mask=own)
    if NEEDS_BIAS:
        if block == 0:
            tl.store(part_dbias + part * (HEADS * TOKENS) + row, dbias, mask=is_row)

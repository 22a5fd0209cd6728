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
from vt_fast.kernels.project_sums import (
    leave_dkeys,
    leave_dvalues,
    store_dbias,
    store_dkeys,
    store_dvalues,
    zero_sums,
)
from vt_fast.kernels.tiles import (
    SIZES,
    chunk_again,
    indices,
    load_chunk,
    load_rows,
    pixel_offsets,
    product,
    store_chunk,
)


@triton.jit(do_not_specialize=SIZES)
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
    token_bias,
    token_bias_batch,
    dx,
    dx_batch,
    dx_row,
    dx_column,
    dx_channel,
    part_dkeys,
    part_dvalues,
    part_dtoken_bias,
    pixels,
    width,
    splits,
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
    HAS_TOKEN_BIAS: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_KEYS: tl.constexpr,
    NEEDS_VALUES: tl.constexpr,
    NEEDS_TOKEN_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    LOOPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    KEEP: tl.constexpr,
    ONE_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: BLOCKS of the channels of x and of the result x splits x B.

    part_dkeys (B, splits, HEADS * TOKENS, CHANNELS), part_dvalues (B, splits, TOKENS, OUT_CHANNELS),
    part_dbias (B, splits, HEADS * TOKENS).
    """
    MOST: tl.constexpr = max(CHANNELS, OUT_CHANNELS)
    CHUNKS: tl.constexpr = (MOST + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0 or CHANNELS != MOST
    OUT_RAGGED: tl.constexpr = OUT_CHANNELS % CHUNK != 0 or OUT_CHANNELS != MOST
    OWN_RAGGED: tl.constexpr = RAGGED or CHANNELS % (CHUNK * OWN * LOOPS) != 0
    OUT_OWN_RAGGED: tl.constexpr = OUT_RAGGED or OUT_CHANNELS % (CHUNK * OWN * LOOPS) != 0
    ROWS: tl.constexpr = HEADS_PADDED * TOKENS_PADDED
    program = tl.program_id(0)
    block = program % BLOCKS
    split = program // BLOCKS % splits
    sample = (program // (BLOCKS * splits)).to(tl.int64)
    part = sample * splits + split
    c = indices(CHUNK, WIDE)
    head, token, row_ok = padded_rows(HEADS, HEADS_PADDED, TOKENS, TOKENS_PADDED)
    row = head * TOKENS + token
    is_row = row_ok
    x += sample * x_batch * ALIGN
    grad += sample * g_batch * ALIGN
    dx += sample * dx_batch * ALIGN
    keys += sample * keys_batch
    values += sample * values_batch
    row_bias = load_bias(
        token_bias + sample * token_bias_batch, head, token, row_ok, HAS_TOKEN_BIAS, TOKENS, ACC
    )
    row_ok = row_bias != -float("inf")  # what a removed row holds must not be looked at
    pixels *= PIXEL_ALIGN

    dkeys = zero_sums(OWN, CHUNK, ROWS, ACC)
    dvalues = zero_sums(OWN, CHUNK, ROWS, ACC)
    dtoken_bias = tl.zeros((ROWS,), ACC)
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n = start + indices(TILE, WIDE)
        ok = n < end
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)
        from_grad = pixel_offsets(n, width, g_row, g_column, G_LAYOUT, ALIGN)
        to = pixel_offsets(n, width, dx_row, dx_column, DX_LAYOUT, ALIGN)
        scores = tl.zeros((TILE, ROWS), ACC)
        grads = tl.zeros((TILE, ROWS), ACC)
        tiles = ()
        arriving = ()
        if KEEP:
            for i in tl.static_range(CHUNKS):
                k = i * CHUNK + c
                tile = load_chunk(x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED)
                key = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
                scores = product(tile, key, scores, PRECISION, WIDEN)
                tiles = tiles + (tile,)
                tile = load_chunk(
                    grad, from_grad, k, g_channel, ok, OUT_CHANNELS, G_LAYOUT, ALIGN, OUT_RAGGED
                )
                value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_RAGGED)
                grads = product(tile, value, grads, PRECISION, WIDEN)
                arriving = arriving + (tile,)
        else:
            for m in tl.range(CHUNKS):
                k = m * CHUNK + c
                tile = load_chunk(x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED)
                key = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
                scores = product(tile, key, scores, PRECISION, WIDEN)
                tile = load_chunk(
                    grad, from_grad, k, g_channel, ok, OUT_CHANNELS, G_LAYOUT, ALIGN, OUT_RAGGED
                )
                value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_RAGGED)
                grads = product(tile, value, grads, PRECISION, WIDEN)
        weights = softmax_over_tokens(scores, row_bias, HEADS_PADDED, TOKENS_PADDED, LIMIT)
        inner = softmax_over_tokens_backward(weights, grads, HEADS_PADDED, TOKENS_PADDED)
        weights = tl.where(ok[:, None], weights, 0.0)
        inner = tl.where(ok[:, None], inner, 0.0)
        if NEEDS_TOKEN_BIAS:
            dtoken_bias += tl.sum(inner, 0)
        weights = weights.to(x.dtype.element_ty)
        inner = inner.to(x.dtype.element_ty)

        # Backwards: what was read last is in the cache.
        for j in tl.range(LOOPS):
            group = (block * LOOPS + LOOPS - 1 - j) * OWN
            more = ()
            for i in tl.static_range(OWN):
                k = (group + i) * CHUNK + c
                if NEEDS_VALUES or RESIDUAL_INPUT:
                    arrived = chunk_again(
                        arriving, i, grad, from_grad, k, g_channel, ok, OUT_CHANNELS, G_LAYOUT, ALIGN,
                        OUT_OWN_RAGGED, KEEP,
                    )  # fmt: skip
                if NEEDS_X:
                    key = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, OWN_RAGGED)
                    out = tl.zeros((TILE, CHUNK), ACC)
                    out = product(inner, tl.trans(key), out, PRECISION, WIDEN)
                    if RESIDUAL_INPUT:
                        out += arrived.to(ACC)
                    store_chunk(dx, to, k, dx_channel, ok, out, CHANNELS, DX_LAYOUT, ALIGN, OWN_RAGGED)
                if NEEDS_VALUES:
                    added = product(tl.trans(arrived), weights, dvalues[i], PRECISION, WIDEN)
                    more = more + leave_dvalues(
                        part_dvalues, part, k, head, token, is_row, added, start > begin, OUT_CHANNELS,
                        HEADS, TOKENS, LOOPS, ONE_TILE,
                    )  # fmt: skip
            if NEEDS_VALUES and LOOPS == 1:
                dvalues = more
        if NEEDS_KEYS:
            # In a loop of its own, which needs fewer registers.
            for j in tl.range(LOOPS):
                group = (block * LOOPS + LOOPS - 1 - j) * OWN
                more = ()
                for i in tl.static_range(OWN):
                    k = (group + i) * CHUNK + c
                    tile = chunk_again(
                        tiles, i, x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, OWN_RAGGED, KEEP
                    )
                    added = product(tl.trans(tile), inner, dkeys[i], PRECISION, WIDEN)
                    more = more + leave_dkeys(
                        part_dkeys, part, k, row, is_row, added, start > begin, CHANNELS, HEADS * TOKENS,
                        LOOPS, ONE_TILE,
                    )  # fmt: skip
                if LOOPS == 1:
                    dkeys = more

        if not ONE_TILE:
            tl.debug_barrier()

    if LOOPS == 1:
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            if NEEDS_KEYS:
                store_dkeys(part_dkeys, part, k, row, is_row, dkeys[i], False, CHANNELS, HEADS * TOKENS, True)
            if NEEDS_VALUES:
                added = dvalues[i]
                store_dvalues(
                    part_dvalues, part, k, head, token, is_row, added, False, OUT_CHANNELS, HEADS, TOKENS,
                    True,
                )  # fmt: skip
    if NEEDS_TOKEN_BIAS:
        if block == 0:
            store_dbias(part_dtoken_bias, part, row, is_row, dtoken_bias, HEADS * TOKENS)

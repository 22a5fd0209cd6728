"""project_tokenize forward: a tile is projected and tokenized while it is on the chip.

The map Y = R + P V (R: the residual) is not needed for its tokens. Its scores are R W^T + P (V W^T), and
pooled with the weights A it is A^T R + (A^T P) V: the products of V with the few queries W are made
beforehand, and those with the few A^T P afterwards.
"""

import triton
import triton.language as tl

from vt_fast.kernels.attention import load_bias, load_values, padded_rows, softmax_over_tokens
from vt_fast.kernels.tiles import (
    channel_offsets,
    finite,
    load_rows,
    load_tile,
    pixel_offsets,
    product,
    store_tile,
)


@triton.jit
def project_tokenize_forward(
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
    queries,
    queries_batch,
    mixed,
    mask,
    log_weights,
    table,
    y,
    y_batch,
    y_row,
    y_column,
    y_channel,
    part_tokens,
    part_highest,
    part_sum,
    part_pooled,
    part_seen,
    pixels,
    width,
    per_split,
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
    QUERIES: tl.constexpr,
    QUERIES_PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMNS_PADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    STORE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
    SMALL_PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: (splits, B, blocks of OWN chunks of the result's channels).

    mixed (B, HEADS * TOKENS, QUERIES) is V W^T. part_tokens (B, splits, QUERIES,
    OUT_CHANNELS + COLUMNS + HEADS * TOKENS): A^T R, A^T table and A^T P, not yet divided; the other parts as
    in tokenize_forward. STORE: the map is written too.
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    OUT_CHUNKS: tl.constexpr = (OUT_CHANNELS + CHUNK - 1) // CHUNK
    ROWS: tl.constexpr = HEADS_PADDED * TOKENS_PADDED
    WIDTH: tl.constexpr = OUT_CHANNELS + COLUMNS + HEADS * TOKENS
    ACC: tl.constexpr = part_tokens.dtype.element_ty
    HAS_BASE: tl.constexpr = HAS_RESIDUAL or RESIDUAL_INPUT
    split = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    block = tl.program_id(2)
    c = tl.arange(0, CHUNK)
    q = tl.arange(0, QUERIES_PADDED)
    query_ok = q < QUERIES
    head, token, row_ok = padded_rows(HEADS, HEADS_PADDED, TOKENS, TOKENS_PADDED)
    row = head * TOKENS + token
    is_row = row_ok
    x += sample * x_batch * ALIGN
    residual += sample * r_batch * ALIGN
    y += sample * y_batch * ALIGN
    keys += sample * keys_batch
    values += sample * values_batch
    queries += sample * queries_batch
    row_bias = load_bias(bias + sample * bias_batch, head, token, row_ok, HAS_BIAS, TOKENS, ACC)
    row_ok = row_bias != -float("inf")  # what a removed row holds must not be looked at
    mix = tl.load(
        mixed + sample * (HEADS * TOKENS * QUERIES) + row[:, None] * QUERIES + q[None, :],
        mask=row_ok[:, None] & query_ok[None, :],
        other=0.0,
    )
    pixels *= PIXEL_ALIGN

    sums = ()
    for i in tl.static_range(OWN):
        sums = sums + (tl.zeros((CHUNK, QUERIES_PADDED), ACC),)
    if COLUMNS > 0:
        p = tl.arange(0, COLUMNS_PADDED)
        table_sums = tl.zeros((COLUMNS_PADDED, QUERIES_PADDED), ACC)
    row_sums = tl.zeros((ROWS, QUERIES_PADDED), ACC)
    highest = tl.full((QUERIES_PADDED,), -float("inf"), ACC)
    total = tl.zeros((QUERIES_PADDED,), ACC)
    pooled = tl.zeros((QUERIES_PADDED,), ACC)
    seen = 0
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n = start + tl.arange(0, TILE)
        inside = n < end
        ok = inside
        if HAS_MASK:
            ok = ok & (tl.load(mask + sample * pixels + n, mask=ok, other=0) != 0)
        if HAS_LOG_WEIGHTS:
            weight = tl.load(log_weights + sample * pixels + n, mask=ok, other=-float("inf")).to(ACC)
            ok = ok & (weight != -float("inf"))
        # Where the map is written, masked pixels of it are too.
        wanted = inside if STORE else ok
        if WIDE:
            n = n.to(tl.int64)
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)
        from_residual = pixel_offsets(n, width, r_row, r_column, R_LAYOUT, ALIGN)

        scores = tl.zeros((TILE, ROWS), ACC)
        for i in tl.range(CHUNKS):
            k = i * CHUNK + c
            across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
            tile = load_tile(x, at, across, wanted, k < CHANNELS, True)
            rows = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, True)
            scores = product(tile, rows, scores, PRECISION, WIDEN)
        projected = softmax_over_tokens(scores, row_bias, HEADS_PADDED, TOKENS_PADDED, LIMIT)
        logits = tl.dot(projected, mix, input_precision=SMALL_PRECISION, out_dtype=ACC)
        if HAS_BASE:
            for i in tl.range(OUT_CHUNKS):
                k = i * CHUNK + c
                if RESIDUAL_INPUT:
                    across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
                    tile = load_tile(x, at, across, wanted, k < OUT_CHANNELS, True)
                else:
                    across = channel_offsets(k, r_channel, R_LAYOUT, ALIGN)
                    tile = load_tile(residual, from_residual, across, wanted, k < OUT_CHANNELS, True)
                rows = load_rows(queries, q, OUT_CHANNELS, k, query_ok, k < OUT_CHANNELS, True)
                logits = product(tile, rows, logits, PRECISION, WIDEN)
        if HAS_LOG_WEIGHTS:
            logits += tl.where(ok, weight, 0.0)[:, None]
        logits = tl.where(ok[:, None], logits, -float("inf"))

        above = tl.maximum(highest, tl.max(logits, 0))
        base = finite(above, LIMIT)
        scale = tl.exp(highest - base)
        weights = tl.exp(logits - base[None, :])
        rounded = weights.to(x.dtype.element_ty)
        total = total * scale + tl.sum(weights, 0)
        pooled = pooled * scale + tl.sum(rounded.to(ACC), 0)
        seen += tl.sum(ok.to(tl.int32), 0)
        highest = above
        row_sums = tl.dot(
            tl.trans(tl.where(ok[:, None], projected, 0.0)),
            rounded.to(ACC),
            row_sums * scale[None, :],
            input_precision=SMALL_PRECISION,
            out_dtype=ACC,
        )
        if COLUMNS > 0:
            entries = tl.load(
                table + n[:, None] * COLUMNS + p[None, :],
                mask=ok[:, None] & (p < COLUMNS)[None, :],
                other=0.0,
            )
            table_sums = product(tl.trans(entries), rounded, table_sums * scale[None, :], PRECISION, WIDEN)

        projected = projected.to(x.dtype.element_ty)
        to = pixel_offsets(n, width, y_row, y_column, Y_LAYOUT, ALIGN)
        more = ()
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            if HAS_BASE:
                if RESIDUAL_INPUT:
                    across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
                    tile = load_tile(x, at, across, wanted, k < OUT_CHANNELS, True)
                else:
                    across = channel_offsets(k, r_channel, R_LAYOUT, ALIGN)
                    tile = load_tile(residual, from_residual, across, wanted, k < OUT_CHANNELS, True)
            if STORE:
                rows = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_CHANNELS)
                out = tl.zeros((TILE, CHUNK), ACC)
                out = product(projected, tl.trans(rows), out, PRECISION, WIDEN)
                if HAS_BASE:
                    out += tile.to(ACC)
                across = channel_offsets(k, y_channel, Y_LAYOUT, ALIGN)
                store_tile(y, to, across, inside, k < OUT_CHANNELS, out, True)
            if HAS_BASE:
                if STORE:
                    tile = tl.where(ok[:, None], tile, 0.0)
                more = more + (product(tl.trans(tile), rounded, sums[i] * scale[None, :], PRECISION, WIDEN),)
        if HAS_BASE:
            sums = more

    at_part = sample * tl.num_programs(0) + split
    part_tokens += at_part * (QUERIES * WIDTH) + q[None, :] * WIDTH
    for i in tl.static_range(OWN):
        k = (block * OWN + i) * CHUNK + c
        tl.store(part_tokens + k[:, None], sums[i], mask=(k < OUT_CHANNELS)[:, None] & query_ok[None, :])
    if block == 0:
        part_tokens += OUT_CHANNELS
        if COLUMNS > 0:
            tl.store(part_tokens + p[:, None], table_sums, mask=(p < COLUMNS)[:, None] & query_ok[None, :])
            part_tokens += COLUMNS
        tl.store(part_tokens + row[:, None], row_sums, mask=is_row[:, None] & query_ok[None, :])
        tl.store(part_highest + at_part * QUERIES + q, highest, mask=query_ok)
        tl.store(part_sum + at_part * QUERIES + q, total, mask=query_ok)
        tl.store(part_pooled + at_part * QUERIES + q, pooled, mask=query_ok)
        tl.store(part_seen + at_part, seen)

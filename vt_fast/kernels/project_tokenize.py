"""project_tokenize forward: a tile is projected and tokenized while it is on the chip."""

import triton
import triton.language as tl

from vt_fast.kernels.attention import load_bias, load_values, padded_rows, softmax_over_tokens
from vt_fast.kernels.mixing import add_mixed, add_outer, kept_rows, mix
from vt_fast.kernels.pixels import load_entries, taking_part
from vt_fast.kernels.pooling import softmax_over_pixels, store_pooled, store_statistics
from vt_fast.kernels.tiles import (
    SIZES,
    add_to_last,
    indices,
    load_chunk,
    load_rows,
    pixel_offsets,
    product,
    store_chunk,
)


@triton.jit(do_not_specialize=SIZES)
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
    token_bias,
    token_bias_batch,
    residual,
    r_batch,
    r_row,
    r_column,
    r_channel,
    queries,
    queries_batch,
    mask,
    pixel_bias,
    table,
    y,
    y_batch,
    y_row,
    y_column,
    y_channel,
    tokens,
    lse,
    part_highest,
    part_sum,
    part_pooled,
    part_seen,
    pixels,
    width,
    splits,
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
    HAS_TOKEN_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_PIXEL_BIAS: tl.constexpr,
    STORE: tl.constexpr,
    DIRECT: tl.constexpr,
    ACC: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    LOOPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    KEEP: tl.constexpr,
    ONE_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    SMALL_PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: BLOCKS of the result's channels x splits x B.

    The map Y = R + P V is pooled as vt_fast.kernels.mixing says. DIRECT (one split): tokens
    (B, QUERIES, OUT_CHANNELS + COLUMNS) and lse (B, QUERIES); otherwise parts as in tokenize_forward.
    STORE: the map is written too. KEEP: the residual's tile stays on the chip until it is pooled.
    """
    MOST: tl.constexpr = max(CHANNELS, OUT_CHANNELS)
    CHUNKS: tl.constexpr = (MOST + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0 or CHANNELS != MOST
    OUT_RAGGED: tl.constexpr = OUT_CHANNELS % CHUNK != 0 or OUT_CHANNELS != MOST
    OWN_RAGGED: tl.constexpr = OUT_RAGGED or OUT_CHANNELS % (CHUNK * OWN * LOOPS) != 0
    ROWS: tl.constexpr = HEADS_PADDED * TOKENS_PADDED
    WIDTH: tl.constexpr = OUT_CHANNELS + COLUMNS
    HAS_BASE: tl.constexpr = HAS_RESIDUAL or RESIDUAL_INPUT
    program = tl.program_id(0)
    block = program % BLOCKS
    split = program // BLOCKS % splits
    sample = (program // (BLOCKS * splits)).to(tl.int64)
    part = sample * splits + split
    c = indices(CHUNK, WIDE)
    q = tl.arange(0, QUERIES_PADDED)
    query_ok = q < QUERIES
    head, token, row_ok = padded_rows(HEADS, HEADS_PADDED, TOKENS, TOKENS_PADDED)
    row = head * TOKENS + token
    x += sample * x_batch * ALIGN
    residual += sample * r_batch * ALIGN
    y += sample * y_batch * ALIGN
    keys += sample * keys_batch
    values += sample * values_batch
    queries += sample * queries_batch
    to_tokens = tokens + part * (QUERIES * WIDTH) + q[None, :] * WIDTH
    row_bias = load_bias(
        token_bias + sample * token_bias_batch, head, token, row_ok, HAS_TOKEN_BIAS, TOKENS, ACC
    )
    row_ok = row_bias != -float("inf")  # what a removed row holds must not be looked at
    mixed = mix(
        values, head, token, row_ok, queries, q, query_ok, c, OUT_CHANNELS, HEADS, OUT_CHANNELS,
        ROWS, QUERIES_PADDED, CHUNK, ACC, PRECISION, WIDEN,
    )  # fmt: skip
    pixels *= PIXEL_ALIGN

    sums = ()
    for i in tl.static_range(OWN):
        sums = sums + (tl.zeros((CHUNK, QUERIES_PADDED), ACC),)
    if COLUMNS > 0:
        table_sums = tl.zeros((COLUMNS_PADDED, QUERIES_PADDED), ACC)
    row_sums = tl.zeros((ROWS, QUERIES_PADDED), ACC)
    highest = tl.full((QUERIES_PADDED,), -float("inf"), ACC)
    total = tl.zeros((QUERIES_PADDED,), ACC)
    pooled = tl.zeros((QUERIES_PADDED,), ACC)
    seen = 0
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n, inside, ok, weight = taking_part(
            start, end, sample * pixels, mask, pixel_bias, TILE, HAS_MASK, HAS_PIXEL_BIAS, WIDE, ACC
        )
        # Where the map is written, masked pixels of it are too.
        wanted = inside if STORE else ok
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)
        from_residual = pixel_offsets(n, width, r_row, r_column, R_LAYOUT, ALIGN)
        to = pixel_offsets(n, width, y_row, y_column, Y_LAYOUT, ALIGN)
        scores = tl.zeros((TILE, ROWS), ACC)
        logits = tl.zeros((TILE, QUERIES_PADDED), ACC)
        tiles = ()
        if KEEP:
            for i in tl.static_range(CHUNKS):
                k = i * CHUNK + c
                tile = load_chunk(x, at, k, x_channel, wanted, CHANNELS, LAYOUT, ALIGN, RAGGED)
                key = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
                scores = product(tile, key, scores, PRECISION, WIDEN)
                if HAS_RESIDUAL:
                    tile = load_chunk(
                        residual, from_residual, k, r_channel, wanted, OUT_CHANNELS, R_LAYOUT, ALIGN,
                        OUT_RAGGED,
                    )  # fmt: skip
                if HAS_BASE:
                    query = load_rows(queries, q, OUT_CHANNELS, k, query_ok, k < OUT_CHANNELS, OUT_RAGGED)
                    logits = product(tile, query, logits, PRECISION, WIDEN)
                tiles = tiles + (tile,)
        else:
            for m in tl.range(CHUNKS):
                k = m * CHUNK + c
                tile = load_chunk(x, at, k, x_channel, wanted, CHANNELS, LAYOUT, ALIGN, RAGGED)
                key = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
                scores = product(tile, key, scores, PRECISION, WIDEN)
                if HAS_RESIDUAL:
                    tile = load_chunk(
                        residual, from_residual, k, r_channel, wanted, OUT_CHANNELS, R_LAYOUT, ALIGN,
                        OUT_RAGGED,
                    )  # fmt: skip
                if HAS_BASE:
                    query = load_rows(queries, q, OUT_CHANNELS, k, query_ok, k < OUT_CHANNELS, OUT_RAGGED)
                    logits = product(tile, query, logits, PRECISION, WIDEN)
        projected = softmax_over_tokens(scores, row_bias, HEADS_PADDED, TOKENS_PADDED, LIMIT)
        logits = tl.dot(projected, mixed, logits, input_precision=SMALL_PRECISION, out_dtype=ACC)
        if HAS_PIXEL_BIAS:
            logits += weight[:, None]
        weights, scale, highest, total, pooled, seen = softmax_over_pixels(
            logits, ok, highest, total, pooled, seen, LIMIT, x.dtype.element_ty
        )
        projected = projected.to(x.dtype.element_ty)
        of_tokenized = projected
        if HAS_MASK or HAS_PIXEL_BIAS:
            of_tokenized = tl.where(ok[:, None], projected, 0.0)
        kept = kept_rows(row_sums, LOOPS) * scale[None, :]
        row_sums = add_outer(of_tokenized, weights, kept, PRECISION, WIDEN)
        if COLUMNS > 0:
            entries = load_entries(table, n, ok, COLUMNS, COLUMNS_PADDED)
            table_sums = product(tl.trans(entries), weights, table_sums * scale[None, :], PRECISION, WIDEN)
        # Backwards: what was read last is in the cache.
        for j in tl.range(LOOPS):
            group = (block * LOOPS + LOOPS - 1 - j) * OWN
            more = ()
            for i in tl.static_range(OWN):
                k = (group + i) * CHUNK + c
                if HAS_BASE:
                    if KEEP:
                        tile = tiles[i]
                    elif RESIDUAL_INPUT:
                        tile = load_chunk(x, at, k, x_channel, wanted, CHANNELS, LAYOUT, ALIGN, OWN_RAGGED)
                    else:
                        tile = load_chunk(
                            residual, from_residual, k, r_channel, wanted, OUT_CHANNELS, R_LAYOUT, ALIGN,
                            OWN_RAGGED,
                        )  # fmt: skip
                if STORE:
                    value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OWN_RAGGED)
                    out = tl.zeros((TILE, CHUNK), ACC)
                    out = product(projected, tl.trans(value), out, PRECISION, WIDEN)
                    if HAS_BASE:
                        out += tile.to(ACC)
                    store_chunk(y, to, k, y_channel, inside, out, OUT_CHANNELS, Y_LAYOUT, ALIGN, OWN_RAGGED)
                added = sums[i] * scale[None, :]
                if HAS_BASE:
                    if STORE and (HAS_MASK or HAS_PIXEL_BIAS):
                        tile = tl.where(ok[:, None], tile, 0.0)
                    added = product(tl.trans(tile), weights, added, PRECISION, WIDEN)
                if LOOPS > 1:
                    value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OWN_RAGGED)
                    added = add_mixed(value, row_sums, added, PRECISION, WIDEN)
                    there = (k < OUT_CHANNELS)[:, None] & query_ok[None, :]
                    at_sums = to_tokens + k[:, None]
                    added = add_to_last(at_sums, there, added, start > begin, scale[None, :], ONE_TILE)
                    store_pooled(at_sums, added, there, pooled, seen, DIRECT)
                else:
                    more = more + (added,)
            if LOOPS == 1:
                sums = more
        if not ONE_TILE:
            tl.debug_barrier()

    if LOOPS == 1:
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OWN_RAGGED)
            added = add_mixed(value, row_sums, sums[i], PRECISION, WIDEN)
            there = (k < OUT_CHANNELS)[:, None] & query_ok[None, :]
            store_pooled(to_tokens + k[:, None], added, there, pooled, seen, DIRECT)
    if block == 0:
        if COLUMNS > 0:
            p = tl.arange(0, COLUMNS_PADDED)
            in_table = (p < COLUMNS)[:, None] & query_ok[None, :]
            store_pooled(to_tokens + OUT_CHANNELS + p[:, None], table_sums, in_table, pooled, seen, DIRECT)
        store_statistics(
            lse, part_highest, part_sum, part_pooled, part_seen, sample, part,
            highest, total, pooled, seen, q, QUERIES, DIRECT, LIMIT,
        )  # fmt: skip

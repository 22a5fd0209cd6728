"""tokenize forward: tokens, or what parts of the pixels contribute to them."""

import triton
import triton.language as tl

from vt_fast.kernels.pixels import load_entries, taking_part
from vt_fast.kernels.pooling import softmax_over_pixels, store_pooled, store_statistics
from vt_fast.kernels.tiles import (
    SIZES,
    add_to_last,
    channel_base,
    indices,
    load_chunk,
    load_rows,
    pixel_offsets,
    product,
)


@triton.jit(do_not_specialize=SIZES)
def tokenize_forward(
    x,
    x_batch,
    x_row,
    x_column,
    x_channel,
    queries,
    queries_batch,
    mask,
    pixel_bias,
    table,
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
    WIDE: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    TOKENS_PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMNS_PADDED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_PIXEL_BIAS: tl.constexpr,
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
    WIDEN: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: BLOCKS of channels x splits x (B * heads).

    A head is a problem of its own, of CHANNELS channels and TOKENS tokens. COLUMNS: of the position table.
    DIRECT (one split): tokens (B, TOKENS, HEADS * CHANNELS + COLUMNS) and lse (B, HEADS * TOKENS). Otherwise
    tokens (B * heads, splits, TOKENS, CHANNELS + COLUMNS) get sums of exp(logit - highest) x, not yet
    divided, the other parts are (B * heads, splits, TOKENS), and part_seen (B * heads, splits).
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0
    OWN_RAGGED: tl.constexpr = CHANNELS % (CHUNK * OWN * LOOPS) != 0
    ROW: tl.constexpr = CHANNELS * (HEADS if DIRECT else 1) + COLUMNS
    program = tl.program_id(0)
    block = program % BLOCKS
    split = program // BLOCKS % splits
    item = (program // (BLOCKS * splits)).to(tl.int64)
    sample = item // HEADS
    head = item % HEADS
    part = item * splits + split
    c = indices(CHUNK, WIDE)
    l = tl.arange(0, TOKENS_PADDED)
    token_ok = l < TOKENS
    x += sample * x_batch * ALIGN
    x += channel_base(head, x_channel, CHANNELS, LAYOUT, ALIGN)
    queries += sample * queries_batch + head * (TOKENS * CHANNELS)
    if DIRECT:
        tokens += sample * (TOKENS * ROW) + head * CHANNELS
    else:
        tokens += part * (TOKENS * ROW)
    to = tokens + l[None, :] * ROW
    pixels *= PIXEL_ALIGN

    rows = ()
    if KEEP:
        for i in tl.static_range(CHUNKS):
            k = i * CHUNK + c
            rows = rows + (load_rows(queries, l, CHANNELS, k, token_ok, k < CHANNELS, RAGGED),)
    sums = ()
    for i in tl.static_range(OWN):
        sums = sums + (tl.zeros((CHUNK, TOKENS_PADDED), ACC),)
    if COLUMNS > 0:
        table_sums = tl.zeros((COLUMNS_PADDED, TOKENS_PADDED), ACC)
    highest = tl.full((TOKENS_PADDED,), -float("inf"), ACC)
    total = tl.zeros((TOKENS_PADDED,), ACC)
    pooled = tl.zeros((TOKENS_PADDED,), ACC)
    seen = 0
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n, _inside, ok, weight = taking_part(
            start, end, sample * pixels, mask, pixel_bias, TILE, HAS_MASK, HAS_PIXEL_BIAS, WIDE, ACC
        )
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)
        logits = tl.zeros((TILE, TOKENS_PADDED), ACC)
        tiles = ()
        if KEEP:
            for i in tl.static_range(CHUNKS):
                k = i * CHUNK + c
                tile = load_chunk(x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED)
                logits = product(tile, rows[i], logits, PRECISION, WIDEN)
                tiles = tiles + (tile,)
        else:
            for m in tl.range(CHUNKS):
                k = m * CHUNK + c
                tile = load_chunk(x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED)
                row = load_rows(queries, l, CHANNELS, k, token_ok, k < CHANNELS, RAGGED)
                logits = product(tile, row, logits, PRECISION, WIDEN)
        if HAS_PIXEL_BIAS:
            logits += weight[:, None]
        weights, scale, highest, total, pooled, seen = softmax_over_pixels(
            logits, ok, highest, total, pooled, seen, LIMIT, x.dtype.element_ty
        )
        # Backwards: what was read last is in the cache.
        for j in tl.range(LOOPS):
            group = (block * LOOPS + LOOPS - 1 - j) * OWN
            more = ()
            for i in tl.static_range(OWN):
                k = (group + i) * CHUNK + c
                if KEEP:
                    tile = tiles[i]
                else:
                    tile = load_chunk(x, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, OWN_RAGGED)
                if LOOPS > 1:
                    added = tl.zeros((CHUNK, TOKENS_PADDED), ACC)
                    added = product(tl.trans(tile), weights, added, PRECISION, WIDEN)
                    there = (k < CHANNELS)[:, None] & token_ok[None, :]
                    at_sums = to + k[:, None]
                    added = add_to_last(at_sums, there, added, start > begin, scale[None, :], ONE_TILE)
                    store_pooled(at_sums, added, there, pooled, seen, DIRECT)
                else:
                    scaled = sums[i] * scale[None, :]
                    more = more + (product(tl.trans(tile), weights, scaled, PRECISION, WIDEN),)
            if LOOPS == 1:
                sums = more
        if not ONE_TILE:
            tl.debug_barrier()
        if COLUMNS > 0:
            entries = load_entries(table, n, ok, COLUMNS, COLUMNS_PADDED)
            table_sums = product(tl.trans(entries), weights, table_sums * scale[None, :], PRECISION, WIDEN)

    if LOOPS == 1:
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            there = (k < CHANNELS)[:, None] & token_ok[None, :]
            store_pooled(to + k[:, None], sums[i], there, pooled, seen, DIRECT)
    if block == 0:
        if COLUMNS > 0:
            p = tl.arange(0, COLUMNS_PADDED)
            in_table = (p < COLUMNS)[:, None] & token_ok[None, :]
            store_pooled(to + CHANNELS + p[:, None], table_sums, in_table, pooled, seen, DIRECT)
        store_statistics(
            lse, part_highest, part_sum, part_pooled, part_seen, item, part,
            highest, total, pooled, seen, l, TOKENS, DIRECT, LIMIT,
        )  # fmt: skip

"""tokenize forward: tokens of parts of the pixels, and how they are put together."""

import triton
import triton.language as tl

from vt_fast.kernels.tiles import (
    channel_offsets,
    finite,
    load_rows,
    load_tile,
    pixel_offsets,
    product,
)


@triton.jit
def tokenize_forward(
    x,
    x_batch,
    x_row,
    x_column,
    x_channel,
    queries,
    queries_batch,
    mask,
    log_weights,
    table,
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
    WIDE: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    TOKENS_PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMNS_PADDED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: (splits, B * heads, blocks of OWN chunks of channels).

    A head is a problem of its own, of CHANNELS channels and TOKENS tokens. COLUMNS: of the position table.
    part_tokens (B * heads, splits, TOKENS, CHANNELS + COLUMNS) are sums of exp(score - highest) x, not yet
    divided; the others are (B * heads, splits, TOKENS), part_seen (B * heads, splits).
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0
    ACC: tl.constexpr = part_tokens.dtype.element_ty
    split = tl.program_id(0)
    item = tl.program_id(1)
    block = tl.program_id(2)
    sample = (item // HEADS).to(tl.int64)
    head = item % HEADS
    c = tl.arange(0, CHUNK)
    l = tl.arange(0, TOKENS_PADDED)
    token_ok = l < TOKENS
    first_channel = head * CHANNELS
    x += sample * x_batch * ALIGN
    queries += sample * queries_batch + head * (TOKENS * CHANNELS)
    pixels *= PIXEL_ALIGN

    sums = ()
    for i in tl.static_range(OWN):
        sums = sums + (tl.zeros((CHUNK, TOKENS_PADDED), ACC),)
    if COLUMNS > 0:
        p = tl.arange(0, COLUMNS_PADDED)
        table_sums = tl.zeros((COLUMNS_PADDED, TOKENS_PADDED), ACC)
    highest = tl.full((TOKENS_PADDED,), -float("inf"), ACC)
    total = tl.zeros((TOKENS_PADDED,), ACC)
    pooled = tl.zeros((TOKENS_PADDED,), ACC)
    seen = 0
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n = start + tl.arange(0, TILE)
        ok = n < end
        if HAS_MASK:
            ok = ok & (tl.load(mask + sample * pixels + n, mask=ok, other=0) != 0)
        if HAS_LOG_WEIGHTS:
            weight = tl.load(log_weights + sample * pixels + n, mask=ok, other=-float("inf")).to(ACC)
            ok = ok & (weight != -float("inf"))
        if WIDE:
            n = n.to(tl.int64)
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)

        scores = tl.zeros((TILE, TOKENS_PADDED), ACC)
        tiles = ()
        if OWN == CHUNKS:
            for i in tl.static_range(CHUNKS):
                k = i * CHUNK + c
                rows = load_rows(queries, l, CHANNELS, k, token_ok, k < CHANNELS, RAGGED)
                across = channel_offsets(first_channel + k, x_channel, LAYOUT, ALIGN)
                tile = load_tile(x, at, across, ok, k < CHANNELS, RAGGED)
                scores = product(tile, rows, scores, PRECISION, WIDEN)
                tiles = tiles + (tile,)
        else:
            for i in tl.range(CHUNKS):
                k = i * CHUNK + c
                rows = load_rows(queries, l, CHANNELS, k, token_ok, k < CHANNELS, RAGGED)
                across = channel_offsets(first_channel + k, x_channel, LAYOUT, ALIGN)
                tile = load_tile(x, at, across, ok, k < CHANNELS, RAGGED)
                scores = product(tile, rows, scores, PRECISION, WIDEN)
        if HAS_LOG_WEIGHTS:
            scores += tl.where(ok, weight, 0.0)[:, None]
        scores = tl.where(ok[:, None], scores, -float("inf"))

        above = tl.maximum(highest, tl.max(scores, 0))
        base = finite(above, LIMIT)
        scale = tl.exp(highest - base)
        weights = tl.exp(scores - base[None, :])
        rounded = weights.to(x.dtype.element_ty)
        total = total * scale + tl.sum(weights, 0)
        pooled = pooled * scale + tl.sum(rounded.to(ACC), 0)
        seen += tl.sum(ok.to(tl.int32), 0)
        highest = above

        more = ()
        for i in tl.static_range(OWN):
            if OWN == CHUNKS:
                tile = tiles[i]
            else:
                k = (block * OWN + i) * CHUNK + c
                across = channel_offsets(first_channel + k, x_channel, LAYOUT, ALIGN)
                tile = load_tile(x, at, across, ok, k < CHANNELS, True)
            more = more + (product(tl.trans(tile), rounded, sums[i] * scale[None, :], PRECISION, WIDEN),)
        sums = more
        if COLUMNS > 0:
            entries = tl.load(
                table + n[:, None] * COLUMNS + p[None, :],
                mask=ok[:, None] & (p < COLUMNS)[None, :],
                other=0.0,
            )
            table_sums = product(tl.trans(entries), rounded, table_sums * scale[None, :], PRECISION, WIDEN)

    at_part = item.to(tl.int64) * tl.num_programs(0) + split
    part_tokens += at_part * (TOKENS * (CHANNELS + COLUMNS)) + l[None, :] * (CHANNELS + COLUMNS)
    for i in tl.static_range(OWN):
        k = (block * OWN + i) * CHUNK + c
        tl.store(part_tokens + k[:, None], sums[i], mask=(k < CHANNELS)[:, None] & token_ok[None, :])
    if block == 0:
        if COLUMNS > 0:
            tl.store(
                part_tokens + CHANNELS + p[:, None],
                table_sums,
                mask=(p < COLUMNS)[:, None] & token_ok[None, :],
            )
        tl.store(part_highest + at_part * TOKENS + l, highest, mask=token_ok)
        tl.store(part_sum + at_part * TOKENS + l, total, mask=token_ok)
        tl.store(part_pooled + at_part * TOKENS + l, pooled, mask=token_ok)
        tl.store(part_seen + at_part, seen)

"""tokenize backward: one pass over the map."""

import triton
import triton.language as tl

from vt_fast.kernels.tiles import (
    channel_offsets,
    load_rows,
    load_tile,
    pixel_offsets,
    product,
    store_tile,
)


@triton.jit
def tokenize_backward(
    x,
    x_batch,
    x_row,
    x_column,
    x_channel,
    queries,
    queries_batch,
    grad_tokens,
    mask,
    log_weights,
    table,
    lse,
    delta,
    dx,
    dx_batch,
    dx_row,
    dx_column,
    dx_channel,
    part_dqueries,
    dlog_weights,
    attention,
    pixels,
    width,
    per_split,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    PIXEL_ALIGN: tl.constexpr,
    DX_LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    TOKENS_PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COLUMNS_PADDED: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_QUERIES: tl.constexpr,
    NEEDS_LOG_WEIGHTS: tl.constexpr,
    NEEDS_ATTENTION: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid: (splits, B * heads, blocks of OWN chunks of channels).

    grad_tokens (B, TOKENS, HEADS * CHANNELS + COLUMNS) in x's dtype; lse and delta (B, HEADS * TOKENS);
    part_dqueries (splits, B * heads, TOKENS, CHANNELS); dlog_weights (heads, B, pixels); attention
    (B, pixels, TOKENS), the weights, where a gradient is wanted to which all samples contribute.
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0
    WIDTH: tl.constexpr = HEADS * CHANNELS + COLUMNS
    ACC: tl.constexpr = lse.dtype.element_ty
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
    dx += sample * dx_batch * ALIGN
    queries += sample * queries_batch + head * (TOKENS * CHANNELS)
    grad_tokens += sample * (TOKENS * WIDTH)
    pixels *= PIXEL_ALIGN
    statistics = item.to(tl.int64) * TOKENS + l
    log_sums = tl.load(lse + statistics, mask=token_ok, other=0.0)
    deltas = tl.load(delta + statistics, mask=token_ok, other=0.0)

    if NEEDS_QUERIES:
        sums = ()
        for i in tl.static_range(OWN):
            sums = sums + (tl.zeros((CHUNK, TOKENS_PADDED), ACC),)
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
        if WIDE:
            n = n.to(tl.int64)
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)

        scores = tl.zeros((TILE, TOKENS_PADDED), ACC)
        grads = tl.zeros((TILE, TOKENS_PADDED), ACC)
        tiles = ()
        if OWN == CHUNKS:
            for i in tl.static_range(CHUNKS):
                k = i * CHUNK + c
                across = channel_offsets(first_channel + k, x_channel, LAYOUT, ALIGN)
                tile = load_tile(x, at, across, ok, k < CHANNELS, RAGGED)
                rows = load_rows(queries, l, CHANNELS, k, token_ok, k < CHANNELS, RAGGED)
                scores = product(tile, rows, scores, PRECISION, WIDEN)
                rows = load_rows(grad_tokens + first_channel, l, WIDTH, k, token_ok, k < CHANNELS, RAGGED)
                grads = product(tile, rows, grads, PRECISION, WIDEN)
                tiles = tiles + (tile,)
        else:
            for i in tl.range(CHUNKS):
                k = i * CHUNK + c
                across = channel_offsets(first_channel + k, x_channel, LAYOUT, ALIGN)
                tile = load_tile(x, at, across, ok, k < CHANNELS, RAGGED)
                rows = load_rows(queries, l, CHANNELS, k, token_ok, k < CHANNELS, RAGGED)
                scores = product(tile, rows, scores, PRECISION, WIDEN)
                rows = load_rows(grad_tokens + first_channel, l, WIDTH, k, token_ok, k < CHANNELS, RAGGED)
                grads = product(tile, rows, grads, PRECISION, WIDEN)
        if COLUMNS > 0:
            p = tl.arange(0, COLUMNS_PADDED)
            entries = tl.load(
                table + n[:, None] * COLUMNS + p[None, :],
                mask=ok[:, None] & (p < COLUMNS)[None, :],
                other=0.0,
            )
            rows = load_rows(grad_tokens + CHANNELS, l, WIDTH, p, token_ok, p < COLUMNS, True)
            grads = product(entries, rows, grads, PRECISION, WIDEN)
        if HAS_LOG_WEIGHTS:
            scores += tl.where(ok, weight, 0.0)[:, None]
        weights = tl.exp(scores - log_sums[None, :])
        inner = weights * (grads - deltas[None, :])
        use = ok[:, None] & token_ok[None, :]
        weights = tl.where(use, weights, 0.0)
        inner = tl.where(use, inner, 0.0)
        if NEEDS_LOG_WEIGHTS:
            if block == 0:
                to = dlog_weights + (head * (tl.num_programs(1) // HEADS) + sample) * pixels + n
                tl.store(to, tl.sum(inner, 1), mask=inside)
        if NEEDS_ATTENTION:
            if block == 0:
                to = attention + (sample * pixels + n)[:, None] * TOKENS + l[None, :]
                tl.store(to, weights, mask=inside[:, None] & token_ok[None, :])
        weights = weights.to(x.dtype.element_ty)
        inner = inner.to(x.dtype.element_ty)

        to = pixel_offsets(n, width, dx_row, dx_column, DX_LAYOUT, ALIGN)
        more = ()
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            if NEEDS_X:
                rows = load_rows(grad_tokens + first_channel, l, WIDTH, k, token_ok, k < CHANNELS, True)
                out = tl.zeros((TILE, CHUNK), ACC)
                out = product(weights, tl.trans(rows), out, PRECISION, WIDEN)
                rows = load_rows(queries, l, CHANNELS, k, token_ok, k < CHANNELS, True)
                out = product(inner, tl.trans(rows), out, PRECISION, WIDEN)
                # A pixel that takes no part has a gradient of 0, whatever the others are.
                out = tl.where(ok[:, None], out, 0.0)
                across = channel_offsets(first_channel + k, dx_channel, DX_LAYOUT, ALIGN)
                store_tile(dx, to, across, inside, k < CHANNELS, out, True)
            if NEEDS_QUERIES:
                if OWN == CHUNKS:
                    tile = tiles[i]
                else:
                    across = channel_offsets(first_channel + k, x_channel, LAYOUT, ALIGN)
                    tile = load_tile(x, at, across, ok, k < CHANNELS, True)
                more = more + (product(tl.trans(tile), inner, sums[i], PRECISION, WIDEN),)
        if NEEDS_QUERIES:
            sums = more

    if NEEDS_QUERIES:
        at_part = split.to(tl.int64) * tl.num_programs(1) + item
        part_dqueries += at_part * (TOKENS * CHANNELS) + l[None, :] * CHANNELS
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            tl.store(part_dqueries + k[:, None], sums[i], mask=(k < CHANNELS)[:, None] & token_ok[None, :])

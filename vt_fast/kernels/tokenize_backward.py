"""tokenize backward: one pass over the map."""

import triton
import triton.language as tl

from vt_fast.kernels.pixels import load_entries, taking_part
from vt_fast.kernels.tiles import (
    SIZES,
    add_to_last,
    channel_base,
    indices,
    load_chunk,
    load_rows,
    pixel_offsets,
    product,
    store_chunk,
)


@triton.jit(do_not_specialize=SIZES)
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
    pixel_bias,
    table,
    lse,
    delta,
    dx,
    dx_batch,
    dx_row,
    dx_column,
    dx_channel,
    part_dqueries,
    dpixel_bias,
    attention,
    pixels,
    width,
    batch,
    tiles_each,
    parts,
    per_part,
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
    HAS_PIXEL_BIAS: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_QUERIES: tl.constexpr,
    NEEDS_PIXEL_BIAS: tl.constexpr,
    NEEDS_ATTENTION: tl.constexpr,
    ACROSS: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    LOOPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    KEEP: tl.constexpr,
    ONE_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid: BLOCKS of channels x HEADS x parts (of each sample, unless ACROSS).

    Tiles of pixels are counted on from sample to sample, ``tiles_each`` in each; a part is ``per_part`` of
    them, of one sample, or ACROSS samples, where these share the queries: then there can be fewer parts than
    samples. grad_tokens (B, TOKENS, HEADS * CHANNELS + COLUMNS) in x's dtype; lse and delta
    (B, HEADS * TOKENS); part_dqueries (B, parts, HEADS, TOKENS, CHANNELS), ACROSS without B; dpixel_bias
    (HEADS, B, pixels); attention (B, pixels, TOKENS), the weights, where a gradient is wanted to which all
    samples contribute.
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0
    OWN_RAGGED: tl.constexpr = CHANNELS % (CHUNK * OWN * LOOPS) != 0
    WIDTH: tl.constexpr = HEADS * CHANNELS + COLUMNS
    ACC: tl.constexpr = lse.dtype.element_ty
    program = tl.program_id(0)
    block = program % BLOCKS
    head = program // BLOCKS % HEADS
    part = program // (BLOCKS * HEADS)
    c = indices(CHUNK, WIDE)
    l = tl.arange(0, TOKENS_PADDED)
    token_ok = l < TOKENS
    x += channel_base(head.to(tl.int64), x_channel, CHANNELS, LAYOUT, ALIGN)
    dx += channel_base(head.to(tl.int64), dx_channel, CHANNELS, DX_LAYOUT, ALIGN)
    queries += head * (TOKENS * CHANNELS)
    grad_tokens += head * CHANNELS
    pixels *= PIXEL_ALIGN
    if ACROSS:
        only = tl.zeros((), tl.int64)
        begin = part * per_part
        end = tl.minimum(begin + per_part, batch * tiles_each)
    else:
        only = (part // parts).to(tl.int64)
        begin = part % parts * per_part
        end = tl.minimum(begin + per_part, tiles_each)

    sums = ()
    if NEEDS_QUERIES:
        for i in tl.static_range(OWN):
            sums = sums + (tl.zeros((CHUNK, TOKENS_PADDED), ACC),)
    for tile_index in tl.range(begin, end):
        if ACROSS:
            sample = (tile_index // tiles_each).to(tl.int64)
            start = tile_index % tiles_each * TILE
        else:
            sample = only
            start = tile_index * TILE
        n, inside, ok, weight = taking_part(
            start, pixels, sample * pixels, mask, pixel_bias, TILE, HAS_MASK, HAS_PIXEL_BIAS, WIDE, ACC
        )
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)
        to = pixel_offsets(n, width, dx_row, dx_column, DX_LAYOUT, ALIGN)
        x_sample = x + sample * x_batch * ALIGN
        dx_sample = dx + sample * dx_batch * ALIGN
        query = queries + sample * queries_batch
        grad = grad_tokens + sample * (TOKENS * WIDTH)
        statistics = (sample * HEADS + head) * TOKENS + l
        log_sums = tl.load(lse + statistics, mask=token_ok, other=0.0)
        means = tl.load(delta + statistics, mask=token_ok, other=0.0)

        logits = tl.zeros((TILE, TOKENS_PADDED), ACC)
        grads = tl.zeros((TILE, TOKENS_PADDED), ACC)
        tiles = ()
        if KEEP:
            for i in tl.static_range(CHUNKS):
                k = i * CHUNK + c
                tile = load_chunk(x_sample, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED)
                query_row = load_rows(query, l, CHANNELS, k, token_ok, k < CHANNELS, RAGGED)
                logits = product(tile, query_row, logits, PRECISION, WIDEN)
                token_grad = load_rows(grad, l, WIDTH, k, token_ok, k < CHANNELS, RAGGED)
                grads = product(tile, token_grad, grads, PRECISION, WIDEN)
                tiles = tiles + (tile,)
        else:
            for m in tl.range(CHUNKS):
                k = m * CHUNK + c
                tile = load_chunk(x_sample, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, RAGGED)
                query_row = load_rows(query, l, CHANNELS, k, token_ok, k < CHANNELS, RAGGED)
                logits = product(tile, query_row, logits, PRECISION, WIDEN)
                token_grad = load_rows(grad, l, WIDTH, k, token_ok, k < CHANNELS, RAGGED)
                grads = product(tile, token_grad, grads, PRECISION, WIDEN)
        if COLUMNS > 0:
            p = tl.arange(0, COLUMNS_PADDED)
            entries = load_entries(table, n, ok, COLUMNS, COLUMNS_PADDED)
            of_table = load_rows(grad + CHANNELS, l, WIDTH, p, token_ok, p < COLUMNS, True)
            grads = product(entries, of_table, grads, PRECISION, WIDEN)
        if HAS_PIXEL_BIAS:
            logits += weight[:, None]
        weights = tl.exp(logits - log_sums[None, :])
        inner = weights * (grads - means[None, :])
        use = ok[:, None] & token_ok[None, :]
        weights = tl.where(use, weights, 0.0)
        inner = tl.where(use, inner, 0.0)
        if block == 0:
            if NEEDS_PIXEL_BIAS:
                to_weights = dpixel_bias + (head * batch + sample) * pixels + n
                tl.store(to_weights, tl.sum(inner, 1), mask=inside)
            if NEEDS_ATTENTION:
                to_attention = attention + (sample * pixels + n)[:, None] * TOKENS + l[None, :]
                tl.store(to_attention, weights, mask=inside[:, None] & token_ok[None, :])
        weights = weights.to(x.dtype.element_ty)
        inner = inner.to(x.dtype.element_ty)

        # Backwards: what was read last is in the cache.
        for j in tl.range(LOOPS):
            group = (block * LOOPS + LOOPS - 1 - j) * OWN
            more = ()
            for i in tl.static_range(OWN):
                k = (group + i) * CHUNK + c
                if NEEDS_X:
                    token_grad = load_rows(grad, l, WIDTH, k, token_ok, k < CHANNELS, OWN_RAGGED)
                    out = tl.zeros((TILE, CHUNK), ACC)
                    out = product(weights, tl.trans(token_grad), out, PRECISION, WIDEN)
                    query_row = load_rows(query, l, CHANNELS, k, token_ok, k < CHANNELS, OWN_RAGGED)
                    out = product(inner, tl.trans(query_row), out, PRECISION, WIDEN)
                    if HAS_MASK or HAS_PIXEL_BIAS:
                        # A pixel that takes no part has a gradient of 0, whatever the others are.
                        out = tl.where(ok[:, None], out, 0.0)
                    store_chunk(
                        dx_sample, to, k, dx_channel, inside, out, CHANNELS, DX_LAYOUT, ALIGN, OWN_RAGGED
                    )
                if NEEDS_QUERIES:
                    if KEEP:
                        tile = tiles[i]
                    else:
                        tile = load_chunk(x_sample, at, k, x_channel, ok, CHANNELS, LAYOUT, ALIGN, OWN_RAGGED)
                    added = product(tl.trans(tile), inner, sums[i], PRECISION, WIDEN)
                    if LOOPS > 1:
                        store_dqueries(
                            part_dqueries, part * HEADS + head, k, l, added, tile_index > begin, CHANNELS,
                            TOKENS, ONE_TILE,
                        )  # fmt: skip
                    else:
                        more = more + (added,)
            if NEEDS_QUERIES:
                if LOOPS == 1:
                    sums = more
        if not ONE_TILE:
            tl.debug_barrier()

    if NEEDS_QUERIES:
        if LOOPS == 1:
            for i in tl.static_range(OWN):
                k = (block * OWN + i) * CHUNK + c
                store_dqueries(
                    part_dqueries, part * HEADS + head, k, l, sums[i], False, CHANNELS, TOKENS, True
                )


@triton.jit
def store_dqueries(
    part_dqueries,
    index,
    channel,
    token,
    sums,
    follows,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """Sums [channels, tokens] of a part and a head, onto those of the tile before if one ``follows``."""
    to = part_dqueries + index.to(tl.int64) * (TOKENS * CHANNELS)
    to += token[None, :] * CHANNELS + channel[:, None]
    there = (channel < CHANNELS)[:, None] & (token < TOKENS)[None, :]
    sums = add_to_last(to, there, sums, follows, 1.0, ONE_TILE)
    tl.store(to, sums.to(part_dqueries.dtype.element_ty), mask=there)

"""The first walk of project_tokenize's backward: each pixel's sums over channels.

Maps are (address, offsets of the tile's pixels, stride of channels); rows are (head, token, row, whether it
counts, whether it is there), some_queries (query, whether it is there).
"""

import triton
import triton.language as tl

from vt_fast.kernels.attention import load_values
from vt_fast.kernels.tiles import load_chunk, load_rows, product


@triton.jit
def first_walk(
    x_map,
    grad_map,
    residual_map,
    channels,
    inside,
    ok,
    keys,
    values,
    rows,
    queries,
    grad_tokens,
    some_queries,
    LAYOUT: tl.constexpr,
    G_LAYOUT: tl.constexpr,
    R_LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    RAGGED: tl.constexpr,
    OUT_RAGGED: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    MASKED: tl.constexpr,
    KEEP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """G V^T, the scores, the residual's share of the logits and of their gradients, and where G is not 0.

    And the tiles, where KEEP keeps them. ``channels``: those of a chunk, from 0.
    """
    TILE: tl.constexpr = inside.shape[0]
    ROWS: tl.constexpr = rows[0].shape[0]
    QUERIES_PADDED: tl.constexpr = some_queries[0].shape[0]
    dprojected = tl.zeros((TILE, ROWS), ACC)
    scores = tl.zeros((TILE, ROWS), ACC)
    logits = tl.zeros((TILE, QUERIES_PADDED), ACC)
    grads = tl.zeros((TILE, QUERIES_PADDED), ACC)
    arriving = tl.zeros((TILE,), tl.int32)
    tiles = ()
    bases = ()
    arrived_tiles = ()
    if KEEP:
        for i in tl.static_range(CHUNKS):
            k = i * CHUNK + channels
            dprojected, scores, logits, grads, arriving, tile, base, arrived = add_chunk(
                dprojected, scores, logits, grads, arriving, k, x_map, grad_map, residual_map,
                inside, ok, keys, values, rows, queries, grad_tokens, some_queries,
                LAYOUT, G_LAYOUT, R_LAYOUT, ALIGN, CHANNELS, OUT_CHANNELS, WIDTH, HEADS, RAGGED,
                OUT_RAGGED, HAS_GRAD, HAS_RESIDUAL, RESIDUAL_INPUT, MASKED, PRECISION, WIDEN,
            )  # fmt: skip
            tiles = tiles + (tile,)
            bases = bases + (base,)
            arrived_tiles = arrived_tiles + (arrived,)
    else:
        for m in tl.range(CHUNKS):
            k = m * CHUNK + channels
            dprojected, scores, logits, grads, arriving, _tile, _base, _arrived = add_chunk(
                dprojected, scores, logits, grads, arriving, k, x_map, grad_map, residual_map,
                inside, ok, keys, values, rows, queries, grad_tokens, some_queries,
                LAYOUT, G_LAYOUT, R_LAYOUT, ALIGN, CHANNELS, OUT_CHANNELS, WIDTH, HEADS, RAGGED,
                OUT_RAGGED, HAS_GRAD, HAS_RESIDUAL, RESIDUAL_INPUT, MASKED, PRECISION, WIDEN,
            )  # fmt: skip
    return dprojected, scores, logits, grads, arriving, tiles, bases, arrived_tiles


@triton.jit
def add_chunk(
    dprojected,
    scores,
    logits,
    grads,
    arriving,
    channels,
    x_map,
    grad_map,
    residual_map,
    inside,
    ok,
    keys,
    values,
    rows,
    queries,
    grad_tokens,
    some_queries,
    LAYOUT: tl.constexpr,
    G_LAYOUT: tl.constexpr,
    R_LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    RAGGED: tl.constexpr,
    OUT_RAGGED: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One more chunk of channels in the sums, and its tiles.

    These are of x, of the residual and of the gradient; where there is none of the last two, that of x again.
    """
    x, at, x_channel = x_map
    grad, from_grad, g_channel = grad_map
    residual, from_residual, r_channel = residual_map
    head, token, row, row_ok, _is_row = rows
    query, query_ok = some_queries
    tile = load_chunk(x, at, channels, x_channel, inside, CHANNELS, LAYOUT, ALIGN, RAGGED)
    base = tile
    arrived = tile
    if HAS_GRAD:
        arrived = load_chunk(
            grad, from_grad, channels, g_channel, inside, OUT_CHANNELS, G_LAYOUT, ALIGN, OUT_RAGGED
        )
        if MASKED:
            arriving = tl.maximum(arriving, tl.max((arrived != 0.0).to(tl.int32), 1))
        value = load_values(values, head, token, row_ok, channels, OUT_CHANNELS, HEADS, OUT_RAGGED)
        dprojected = product(arrived, value, dprojected, PRECISION, WIDEN)
    key = load_rows(keys, row, CHANNELS, channels, row_ok, channels < CHANNELS, RAGGED)
    scores = product(tile, key, scores, PRECISION, WIDEN)
    if HAS_RESIDUAL:
        base = load_chunk(
            residual, from_residual, channels, r_channel, ok, OUT_CHANNELS, R_LAYOUT, ALIGN, OUT_RAGGED
        )
    if HAS_RESIDUAL or RESIDUAL_INPUT:
        there = channels < OUT_CHANNELS
        of_query = load_rows(queries, query, OUT_CHANNELS, channels, query_ok, there, OUT_RAGGED)
        logits = product(base, of_query, logits, PRECISION, WIDEN)
        of_grad = load_rows(grad_tokens, query, WIDTH, channels, query_ok, there, OUT_RAGGED)
        grads = product(base, of_grad, grads, PRECISION, WIDEN)
    return dprojected, scores, logits, grads, arriving, tile, base, arrived

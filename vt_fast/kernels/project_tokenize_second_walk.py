"""The second walk of project_tokenize's backward: two loops, as each needs fewer registers than both in one.

They go backwards, as what was read last is in the cache. Maps are (address, offsets of the tile's pixels,
stride of channels); rows are (head, token, row, whether it counts, whether it is there), some_queries (query,
whether it is there). ``channels``: those of a chunk, from 0. Where a tile's sums go to memory, those that
come back are as they were.
"""

import triton
import triton.language as tl

from vt_fast.kernels.attention import load_values
from vt_fast.kernels.mixing import add_mixed
from vt_fast.kernels.project_sums import leave_dkeys, leave_dvalues
from vt_fast.kernels.tiles import chunk_again, load_rows, product, store_chunk


@triton.jit
def store_maps_and_add_dvalues(
    dvalues,
    pooled_rows,
    inner_rows,
    weights,
    inner,
    projected,
    dscores,
    arrived_tiles,
    block,
    channels,
    ok,
    used,
    inside,
    grad_map,
    dx_map,
    dresidual_map,
    keys,
    rows,
    queries,
    grad_tokens,
    some_queries,
    part_dvalues,
    part,
    start,
    begin,
    G_LAYOUT: tl.constexpr,
    DX_LAYOUT: tl.constexpr,
    DR_LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    RAGGED: tl.constexpr,
    OUT_RAGGED: tl.constexpr,
    HAS_GRAD: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    MASKED: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_VALUES: tl.constexpr,
    NEEDS_RESIDUAL: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    LOOPS: tl.constexpr,
    KEEP: tl.constexpr,
    ONE_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """dx and dresidual of a tile, and the sums of dvalues with it."""
    TILE: tl.constexpr = inside.shape[0]
    NEEDS_MAP: tl.constexpr = NEEDS_RESIDUAL or (RESIDUAL_INPUT and NEEDS_X)
    grad, from_grad, g_channel = grad_map
    dx, to, dx_channel = dx_map
    dresidual, to_residual, dr_channel = dresidual_map
    head, token, row, row_ok, is_row = rows
    q, query_ok = some_queries
    for j in tl.range(LOOPS):
        group = (block * LOOPS + LOOPS - 1 - j) * OWN
        more = ()
        for i in tl.static_range(OWN):
            k = (group + i) * CHUNK + channels
            if HAS_GRAD:
                arrived = chunk_again(
                    arrived_tiles, i, grad, from_grad, k, g_channel, inside, OUT_CHANNELS, G_LAYOUT, ALIGN,
                    OUT_RAGGED, KEEP,
                )  # fmt: skip
            query = load_rows(queries, q, OUT_CHANNELS, k, query_ok, k < OUT_CHANNELS, OUT_RAGGED)
            token_grad = load_rows(grad_tokens, q, WIDTH, k, query_ok, k < OUT_CHANNELS, OUT_RAGGED)
            if NEEDS_MAP:
                whole = tl.zeros((TILE, CHUNK), ACC)
                whole = product(weights, tl.trans(token_grad), whole, PRECISION, WIDEN)
                whole = product(inner, tl.trans(query), whole, PRECISION, WIDEN)
                if MASKED:
                    whole = tl.where(ok[:, None], whole, 0.0)  # whatever 0 times infinity is
                if HAS_GRAD:
                    whole += arrived.to(ACC)
                if NEEDS_RESIDUAL:
                    store_chunk(
                        dresidual, to_residual, k, dr_channel, inside, whole, OUT_CHANNELS, DR_LAYOUT, ALIGN,
                        OUT_RAGGED,
                    )  # fmt: skip
            if NEEDS_X:
                key = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, RAGGED)
                out = tl.zeros((TILE, CHUNK), ACC)
                if RESIDUAL_INPUT and not MASKED:
                    out = whole
                out = product(dscores, tl.trans(key), out, PRECISION, WIDEN)
                if MASKED:
                    out = tl.where(used[:, None], out, 0.0)
                    if RESIDUAL_INPUT:
                        out += whole
                store_chunk(dx, to, k, dx_channel, inside, out, CHANNELS, DX_LAYOUT, ALIGN, RAGGED)
            if NEEDS_VALUES:
                added = dvalues[i]
                if HAS_GRAD:
                    added = product(tl.trans(arrived), projected, added, PRECISION, WIDEN)
                if LOOPS > 1:
                    added = add_mixed(token_grad, tl.trans(pooled_rows), added, PRECISION, WIDEN)
                    added = add_mixed(query, tl.trans(inner_rows), added, PRECISION, WIDEN)
                more = more + leave_dvalues(
                    part_dvalues, part, k, head, token, is_row, added, start > begin, OUT_CHANNELS,
                    HEADS, TOKENS, LOOPS, ONE_TILE,
                )  # fmt: skip
        if NEEDS_VALUES and LOOPS == 1:
            dvalues = more
    return dvalues


@triton.jit
def add_dkeys_and_dqueries(
    dkeys,
    dqueries,
    inner_rows,
    inner,
    dscores,
    tiles,
    bases,
    block,
    channels,
    ok,
    used,
    inside,
    x_map,
    residual_map,
    values,
    rows,
    some_queries,
    part_dkeys,
    part_dqueries,
    part,
    start,
    begin,
    LAYOUT: tl.constexpr,
    R_LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    QUERIES: tl.constexpr,
    RAGGED: tl.constexpr,
    OUT_RAGGED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    MASKED: tl.constexpr,
    NEEDS_KEYS: tl.constexpr,
    NEEDS_QUERIES: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    LOOPS: tl.constexpr,
    KEEP: tl.constexpr,
    ONE_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """The sums of dkeys and of dqueries with those of a tile."""
    x, at, x_channel = x_map
    residual, from_residual, r_channel = residual_map
    head, token, row, row_ok, is_row = rows
    q, query_ok = some_queries
    for j in tl.range(LOOPS):
        group = (block * LOOPS + LOOPS - 1 - j) * OWN
        more_keys = ()
        more_queries = ()
        for i in tl.static_range(OWN):
            k = (group + i) * CHUNK + channels
            if NEEDS_KEYS or RESIDUAL_INPUT:
                tile = chunk_again(
                    tiles, i, x, at, k, x_channel, inside, CHANNELS, LAYOUT, ALIGN, RAGGED, KEEP
                )
            if NEEDS_KEYS:
                taken = tile
                if MASKED:
                    taken = tl.where(used[:, None], tile, 0.0)
                added = product(tl.trans(taken), dscores, dkeys[i], PRECISION, WIDEN)
                more_keys = more_keys + leave_dkeys(
                    part_dkeys, part, k, row, is_row, added, start > begin, CHANNELS, HEADS * TOKENS, LOOPS,
                    ONE_TILE,
                )  # fmt: skip
            if NEEDS_QUERIES:
                more_added = dqueries[i]
                if RESIDUAL_INPUT:
                    base = tile
                    if MASKED:
                        base = tl.where(ok[:, None], tile, 0.0)
                elif HAS_RESIDUAL:
                    base = chunk_again(
                        bases, i, residual, from_residual, k, r_channel, ok, OUT_CHANNELS, R_LAYOUT, ALIGN,
                        OUT_RAGGED, KEEP,
                    )  # fmt: skip
                if HAS_RESIDUAL or RESIDUAL_INPUT:
                    more_added = product(tl.trans(base), inner, more_added, PRECISION, WIDEN)
                if LOOPS > 1:
                    value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_RAGGED)
                    more_added = add_mixed(value, inner_rows, more_added, PRECISION, WIDEN)
                more_queries = more_queries + leave_dkeys(
                    part_dqueries, part, k, q, query_ok, more_added, start > begin, OUT_CHANNELS, QUERIES,
                    LOOPS, ONE_TILE,
                )  # fmt: skip
        if LOOPS == 1:
            if NEEDS_KEYS:
                dkeys = more_keys
            if NEEDS_QUERIES:
                dqueries = more_queries
    return dkeys, dqueries

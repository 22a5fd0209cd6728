"""project_tokenize backward: the map is recomputed from its parts, and never stored."""

import triton
import triton.language as tl

from vt_fast.kernels.attention import (
    load_bias,
    load_values,
    padded_rows,
    softmax_over_tokens,
    softmax_over_tokens_backward,
)
from vt_fast.kernels.mixing import add_mixed, add_outer, kept_rows, mix
from vt_fast.kernels.pixels import load_entries, taking_part
from vt_fast.kernels.project_sums import store_dbias, store_dkeys, store_dvalues, zero_sums
from vt_fast.kernels.project_tokenize_first_walk import first_walk
from vt_fast.kernels.project_tokenize_second_walk import add_dkeys_and_dqueries, store_maps_and_add_dvalues
from vt_fast.kernels.tiles import SIZES, indices, load_rows, pixel_offsets, product


@triton.jit(do_not_specialize=SIZES)
def project_tokenize_backward(
    grad,
    g_batch,
    g_row,
    g_column,
    g_channel,
    grad_tokens,
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
    lse,
    delta,
    dx,
    dx_batch,
    dx_row,
    dx_column,
    dx_channel,
    dresidual,
    dr_batch,
    dr_row,
    dr_column,
    dr_channel,
    part_dkeys,
    part_dvalues,
    part_dtoken_bias,
    part_dqueries,
    dpixel_bias,
    attention,
    pixels,
    width,
    splits,
    per_split,
    G_LAYOUT: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    PIXEL_ALIGN: tl.constexpr,
    R_LAYOUT: tl.constexpr,
    DX_LAYOUT: tl.constexpr,
    DR_LAYOUT: tl.constexpr,
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
    HAS_GRAD: tl.constexpr,
    HAS_TOKEN_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_PIXEL_BIAS: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_KEYS: tl.constexpr,
    NEEDS_VALUES: tl.constexpr,
    NEEDS_QUERIES: tl.constexpr,
    NEEDS_TOKEN_BIAS: tl.constexpr,
    NEEDS_RESIDUAL: tl.constexpr,
    NEEDS_PIXEL_BIAS: tl.constexpr,
    NEEDS_ATTENTION: tl.constexpr,
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
    """Grid: BLOCKS of the channels of x and of the result x splits x B.

    With the map's whole gradient H = G + A dT + dS W, sums over pixels of H or of the map are G^T P or dS^T R
    and what goes through the few rows P^T A and P^T dS, see vt_fast.kernels.mixing. part_dkeys
    (B, splits, HEADS * TOKENS, CHANNELS), part_dvalues (B, splits, TOKENS, OUT_CHANNELS), part_dbias
    (B, splits, HEADS * TOKENS), part_dqueries (B, splits, QUERIES, OUT_CHANNELS); the rest as in the
    backwards of the two. KEEP: tiles of the map, of the residual and of the gradient stay on the chip.
    """
    MOST: tl.constexpr = max(CHANNELS, OUT_CHANNELS)
    CHUNKS: tl.constexpr = (MOST + CHUNK - 1) // CHUNK
    RAGGED: tl.constexpr = CHANNELS % CHUNK != 0 or CHANNELS != MOST
    OUT_RAGGED: tl.constexpr = OUT_CHANNELS % CHUNK != 0 or OUT_CHANNELS != MOST
    OWN_RAGGED: tl.constexpr = RAGGED or CHANNELS % (CHUNK * OWN * LOOPS) != 0
    OUT_OWN_RAGGED: tl.constexpr = OUT_RAGGED or OUT_CHANNELS % (CHUNK * OWN * LOOPS) != 0
    ROWS: tl.constexpr = HEADS_PADDED * TOKENS_PADDED
    WIDTH: tl.constexpr = OUT_CHANNELS + COLUMNS
    ACC: tl.constexpr = lse.dtype.element_ty
    MASKED: tl.constexpr = HAS_MASK or HAS_PIXEL_BIAS
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
    is_row = row_ok
    x += sample * x_batch * ALIGN
    grad += sample * g_batch * ALIGN
    residual += sample * r_batch * ALIGN
    dx += sample * dx_batch * ALIGN
    dresidual += sample * dr_batch * ALIGN
    keys += sample * keys_batch
    values += sample * values_batch
    queries += sample * queries_batch
    grad_tokens += sample * (QUERIES * WIDTH)
    row_bias = load_bias(
        token_bias + sample * token_bias_batch, head, token, row_ok, HAS_TOKEN_BIAS, TOKENS, ACC
    )
    row_ok = row_bias != -float("inf")  # what a removed row holds must not be looked at
    rows = (head, token, row, row_ok, is_row)
    some_queries = (q, query_ok)
    mixed = mix(
        values, head, token, row_ok, queries, q, query_ok, c, OUT_CHANNELS, HEADS, OUT_CHANNELS,
        ROWS, QUERIES_PADDED, CHUNK, ACC, PRECISION, WIDEN,
    )  # fmt: skip
    mixed_grads = mix(
        values, head, token, row_ok, grad_tokens, q, query_ok, c, OUT_CHANNELS, HEADS, WIDTH,
        ROWS, QUERIES_PADDED, CHUNK, ACC, PRECISION, WIDEN,
    )  # fmt: skip
    log_sums = tl.load(lse + sample * QUERIES + q, mask=query_ok, other=0.0)
    means = tl.load(delta + sample * QUERIES + q, mask=query_ok, other=0.0)
    pixels *= PIXEL_ALIGN

    dkeys = zero_sums(OWN, CHUNK, ROWS, ACC)
    dvalues = zero_sums(OWN, CHUNK, ROWS, ACC)
    dqueries = zero_sums(OWN, CHUNK, QUERIES_PADDED, ACC)
    dtoken_bias = tl.zeros((ROWS,), ACC)
    pooled_rows = tl.zeros((ROWS, QUERIES_PADDED), ACC)
    inner_rows = tl.zeros((ROWS, QUERIES_PADDED), ACC)
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n, inside, ok, weight = taking_part(
            start, end, sample * pixels, mask, pixel_bias, TILE, HAS_MASK, HAS_PIXEL_BIAS, WIDE, ACC
        )
        at = pixel_offsets(n, width, x_row, x_column, LAYOUT, ALIGN)
        from_grad = pixel_offsets(n, width, g_row, g_column, G_LAYOUT, ALIGN)
        from_residual = pixel_offsets(n, width, r_row, r_column, R_LAYOUT, ALIGN)
        to = pixel_offsets(n, width, dx_row, dx_column, DX_LAYOUT, ALIGN)
        to_residual = pixel_offsets(n, width, dr_row, dr_column, DR_LAYOUT, ALIGN)
        x_map = (x, at, x_channel)
        grad_map = (grad, from_grad, g_channel)
        residual_map = (residual, from_residual, r_channel)
        dx_map = (dx, to, dx_channel)
        dresidual_map = (dresidual, to_residual, dr_channel)

        dprojected, scores, logits, grads, arriving, tiles, bases, arrived_tiles = first_walk(
            x_map, grad_map, residual_map, c, inside, ok, keys, values, rows, queries, grad_tokens,
            some_queries, LAYOUT, G_LAYOUT, R_LAYOUT, ALIGN, CHANNELS, OUT_CHANNELS, WIDTH, HEADS, CHUNK,
            CHUNKS, RAGGED, OUT_RAGGED, HAS_GRAD, HAS_RESIDUAL, RESIDUAL_INPUT, MASKED, KEEP, ACC, PRECISION,
            WIDEN,
        )  # fmt: skip
        # A pixel that is not tokenized counts only where a gradient of the map arrives.
        used = ok
        if MASKED and HAS_GRAD:
            used = ok | (arriving > 0)
        projected = softmax_over_tokens(scores, row_bias, HEADS_PADDED, TOKENS_PADDED, LIMIT)
        projected = tl.where(used[:, None], projected, 0.0)
        logits = tl.dot(projected, mixed, logits, input_precision=SMALL_PRECISION, out_dtype=ACC)
        grads = tl.dot(projected, mixed_grads, grads, input_precision=SMALL_PRECISION, out_dtype=ACC)
        if COLUMNS > 0:
            p = tl.arange(0, COLUMNS_PADDED)
            entries = load_entries(table, n, ok, COLUMNS, COLUMNS_PADDED)
            of_table = load_rows(grad_tokens + OUT_CHANNELS, q, WIDTH, p, query_ok, p < COLUMNS, True)
            grads = product(entries, of_table, grads, PRECISION, WIDEN)
        if HAS_PIXEL_BIAS:
            logits += weight[:, None]
        weights = tl.exp(logits - log_sums[None, :])
        inner = weights * (grads - means[None, :])
        use = ok[:, None] & query_ok[None, :]
        weights = tl.where(use, weights, 0.0)
        inner = tl.where(use, inner, 0.0)
        if block == 0:
            if NEEDS_PIXEL_BIAS:
                tl.store(dpixel_bias + sample * pixels + n, tl.sum(inner, 1), mask=inside)
            if NEEDS_ATTENTION:
                to_attention = attention + (sample * pixels + n)[:, None] * QUERIES + q[None, :]
                tl.store(to_attention, weights, mask=inside[:, None] & query_ok[None, :])

        # H V^T, of which G V^T is there already.
        through = tl.dot(weights, tl.trans(mixed_grads), input_precision=SMALL_PRECISION, out_dtype=ACC)
        through = tl.dot(inner, tl.trans(mixed), through, input_precision=SMALL_PRECISION, out_dtype=ACC)
        dprojected += tl.where(ok[:, None], through, 0.0)
        dscores = softmax_over_tokens_backward(projected, dprojected, HEADS_PADDED, TOKENS_PADDED)
        dscores = tl.where(used[:, None], dscores, 0.0)
        if NEEDS_TOKEN_BIAS:
            dtoken_bias += tl.sum(dscores, 0)
        projected = projected.to(x.dtype.element_ty)
        dscores = dscores.to(x.dtype.element_ty)
        of_tokenized = projected
        if MASKED:
            of_tokenized = tl.where(ok[:, None], projected, 0.0)
        if NEEDS_VALUES:
            pooled_rows = add_outer(of_tokenized, weights, kept_rows(pooled_rows, LOOPS), PRECISION, WIDEN)
        if NEEDS_VALUES or NEEDS_QUERIES:
            inner_rows = add_outer(of_tokenized, inner, kept_rows(inner_rows, LOOPS), PRECISION, WIDEN)
        weights = weights.to(x.dtype.element_ty)
        inner = inner.to(x.dtype.element_ty)

        dvalues = store_maps_and_add_dvalues(
            dvalues, pooled_rows, inner_rows, weights, inner, projected, dscores, arrived_tiles, block, c,
            ok, used, inside, grad_map, dx_map, dresidual_map, keys, rows, queries, grad_tokens, some_queries,
            part_dvalues, part, start, begin, G_LAYOUT, DX_LAYOUT, DR_LAYOUT, ALIGN, CHANNELS, OUT_CHANNELS,
            WIDTH, HEADS, TOKENS, OWN_RAGGED, OUT_OWN_RAGGED, HAS_GRAD, RESIDUAL_INPUT, MASKED, NEEDS_X,
            NEEDS_VALUES, NEEDS_RESIDUAL, ACC, CHUNK, OWN, LOOPS, KEEP, ONE_TILE, PRECISION, WIDEN,
        )  # fmt: skip
        if NEEDS_KEYS or NEEDS_QUERIES:
            dkeys, dqueries = add_dkeys_and_dqueries(
                dkeys, dqueries, inner_rows, inner, dscores, tiles, bases, block, c, ok, used, inside,
                x_map, residual_map, values, rows, some_queries, part_dkeys, part_dqueries, part,
                start, begin, LAYOUT, R_LAYOUT, ALIGN, CHANNELS, OUT_CHANNELS, HEADS, TOKENS, QUERIES,
                OWN_RAGGED, OUT_OWN_RAGGED, HAS_RESIDUAL, RESIDUAL_INPUT, MASKED, NEEDS_KEYS, NEEDS_QUERIES,
                CHUNK, OWN, LOOPS, KEEP, ONE_TILE, PRECISION, WIDEN,
            )  # fmt: skip

        if not ONE_TILE:
            tl.debug_barrier()

    if LOOPS == 1:
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            if NEEDS_KEYS:
                store_dkeys(part_dkeys, part, k, row, is_row, dkeys[i], False, CHANNELS, HEADS * TOKENS, True)
            if NEEDS_VALUES:
                token_grad = load_rows(grad_tokens, q, WIDTH, k, query_ok, k < OUT_CHANNELS, OUT_OWN_RAGGED)
                added = add_mixed(token_grad, tl.trans(pooled_rows), dvalues[i], PRECISION, WIDEN)
                query = load_rows(queries, q, OUT_CHANNELS, k, query_ok, k < OUT_CHANNELS, OUT_OWN_RAGGED)
                added = add_mixed(query, tl.trans(inner_rows), added, PRECISION, WIDEN)
                store_dvalues(
                    part_dvalues, part, k, head, token, is_row, added, False, OUT_CHANNELS, HEADS, TOKENS,
                    True,
                )  # fmt: skip
            if NEEDS_QUERIES:
                value = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_OWN_RAGGED)
                added = add_mixed(value, inner_rows, dqueries[i], PRECISION, WIDEN)
                store_dkeys(part_dqueries, part, k, q, query_ok, added, False, OUT_CHANNELS, QUERIES, True)
    if block == 0:
        if NEEDS_TOKEN_BIAS:
            store_dbias(part_dtoken_bias, part, row, is_row, dtoken_bias, HEADS * TOKENS)

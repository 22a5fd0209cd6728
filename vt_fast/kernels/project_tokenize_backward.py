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
from vt_fast.kernels.tiles import (
    channel_offsets,
    load_rows,
    load_tile,
    pixel_offsets,
    product,
    store_tile,
)


@triton.jit
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
    mixed_grads,
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
    dresidual,
    dr_batch,
    dr_row,
    dr_column,
    dr_channel,
    part_dkeys,
    part_dvalues,
    part_dbias,
    part_dqueries,
    part_rows,
    dlog_weights,
    attention,
    pixels,
    width,
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
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RESIDUAL_INPUT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_LOG_WEIGHTS: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_KEYS: tl.constexpr,
    NEEDS_VALUES: tl.constexpr,
    NEEDS_QUERIES: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    NEEDS_RESIDUAL: tl.constexpr,
    NEEDS_LOG_WEIGHTS: tl.constexpr,
    NEEDS_ATTENTION: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
    SMALL_PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Grid: (splits, B, blocks of OWN chunks of the channels of x and of the result).

    mixed and mixed_grads (B, HEADS * TOKENS, QUERIES) are V W^T and V dT^T. With the map's whole gradient
    H = G + A dT + dS W, a part of each sum over pixels of H or of the map goes through the few rows
    P^T A and P^T dS: part_rows (splits, B, 2, HEADS * TOKENS, QUERIES). part_dvalues is then G^T P alone, and
    part_dqueries (splits, B, QUERIES, OUT_CHANNELS) dS^T R alone; the rest as in the two backwards.
    """
    CHUNKS: tl.constexpr = (CHANNELS + CHUNK - 1) // CHUNK
    OUT_CHUNKS: tl.constexpr = (OUT_CHANNELS + CHUNK - 1) // CHUNK
    ROWS: tl.constexpr = HEADS_PADDED * TOKENS_PADDED
    WIDTH: tl.constexpr = OUT_CHANNELS + COLUMNS
    ACC: tl.constexpr = lse.dtype.element_ty
    HAS_BASE: tl.constexpr = HAS_RESIDUAL or RESIDUAL_INPUT
    NEEDS_MAP: tl.constexpr = NEEDS_RESIDUAL or (RESIDUAL_INPUT and NEEDS_X)
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
    grad += sample * g_batch * ALIGN
    residual += sample * r_batch * ALIGN
    dx += sample * dx_batch * ALIGN
    dresidual += sample * dr_batch * ALIGN
    keys += sample * keys_batch
    values += sample * values_batch
    queries += sample * queries_batch
    grad_tokens += sample * (QUERIES * WIDTH)
    row_bias = load_bias(bias + sample * bias_batch, head, token, row_ok, HAS_BIAS, TOKENS, ACC)
    row_ok = row_bias != -float("inf")  # what a removed row holds must not be looked at
    of_mix = sample * (HEADS * TOKENS * QUERIES) + row[:, None] * QUERIES + q[None, :]
    mix_ok = row_ok[:, None] & query_ok[None, :]
    mix = tl.load(mixed + of_mix, mask=mix_ok, other=0.0)
    mix_grads = tl.load(mixed_grads + of_mix, mask=mix_ok, other=0.0)
    log_sums = tl.load(lse + sample * QUERIES + q, mask=query_ok, other=0.0)
    deltas = tl.load(delta + sample * QUERIES + q, mask=query_ok, other=0.0)
    pixels *= PIXEL_ALIGN

    dkeys = ()
    dvalues = ()
    dqueries = ()
    for i in tl.static_range(OWN):
        dkeys = dkeys + (tl.zeros((CHUNK, ROWS), ACC),)
        dvalues = dvalues + (tl.zeros((CHUNK, ROWS), ACC),)
        dqueries = dqueries + (tl.zeros((CHUNK, QUERIES_PADDED), ACC),)
    dbias = tl.zeros((ROWS,), ACC)
    pooled_rows = tl.zeros((ROWS, QUERIES_PADDED), ACC)
    inner_rows = tl.zeros((ROWS, QUERIES_PADDED), ACC)
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
        from_grad = pixel_offsets(n, width, g_row, g_column, G_LAYOUT, ALIGN)
        from_residual = pixel_offsets(n, width, r_row, r_column, R_LAYOUT, ALIGN)

        # A pixel that is not tokenized counts only where a gradient of the map arrives.
        used = ok
        dprojected = tl.zeros((TILE, ROWS), ACC)
        if HAS_GRAD:
            arriving = tl.zeros((TILE,), tl.int32)
            for i in tl.range(OUT_CHUNKS):
                k = i * CHUNK + c
                across = channel_offsets(k, g_channel, G_LAYOUT, ALIGN)
                tile = load_tile(grad, from_grad, across, inside, k < OUT_CHANNELS, True)
                arriving = tl.maximum(arriving, tl.max((tile != 0.0).to(tl.int32), 1))
                rows = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, OUT_CHANNELS)
                dprojected = product(tile, rows, dprojected, PRECISION, WIDEN)
            used = used | (arriving > 0)
        scores = tl.zeros((TILE, ROWS), ACC)
        for i in tl.range(CHUNKS):
            k = i * CHUNK + c
            across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
            tile = load_tile(x, at, across, used, k < CHANNELS, True)
            rows = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, True)
            scores = product(tile, rows, scores, PRECISION, WIDEN)
        projected = softmax_over_tokens(scores, row_bias, HEADS_PADDED, TOKENS_PADDED, LIMIT)
        projected = tl.where(used[:, None], projected, 0.0)
        logits = tl.dot(projected, mix, input_precision=SMALL_PRECISION, out_dtype=ACC)
        grads = tl.dot(projected, mix_grads, input_precision=SMALL_PRECISION, out_dtype=ACC)
        if HAS_BASE:
            for i in tl.range(OUT_CHUNKS):
                k = i * CHUNK + c
                if RESIDUAL_INPUT:
                    across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
                    tile = load_tile(x, at, across, ok, k < OUT_CHANNELS, True)
                else:
                    across = channel_offsets(k, r_channel, R_LAYOUT, ALIGN)
                    tile = load_tile(residual, from_residual, across, ok, k < OUT_CHANNELS, True)
                rows = load_rows(queries, q, OUT_CHANNELS, k, query_ok, k < OUT_CHANNELS, True)
                logits = product(tile, rows, logits, PRECISION, WIDEN)
                rows = load_rows(grad_tokens, q, WIDTH, k, query_ok, k < OUT_CHANNELS, True)
                grads = product(tile, rows, grads, PRECISION, WIDEN)
        if COLUMNS > 0:
            p = tl.arange(0, COLUMNS_PADDED)
            entries = tl.load(
                table + n[:, None] * COLUMNS + p[None, :],
                mask=ok[:, None] & (p < COLUMNS)[None, :],
                other=0.0,
            )
            rows = load_rows(grad_tokens + OUT_CHANNELS, q, WIDTH, p, query_ok, p < COLUMNS, True)
            grads = product(entries, rows, grads, PRECISION, WIDEN)
        if HAS_LOG_WEIGHTS:
            logits += tl.where(ok, weight, 0.0)[:, None]
        weights = tl.exp(logits - log_sums[None, :])
        inner = weights * (grads - deltas[None, :])
        use = ok[:, None] & query_ok[None, :]
        weights = tl.where(use, weights, 0.0)
        inner = tl.where(use, inner, 0.0)
        if NEEDS_LOG_WEIGHTS:
            if block == 0:
                tl.store(dlog_weights + sample * pixels + n, tl.sum(inner, 1), mask=inside)
        if NEEDS_ATTENTION:
            if block == 0:
                to = attention + (sample * pixels + n)[:, None] * QUERIES + q[None, :]
                tl.store(to, weights, mask=inside[:, None] & query_ok[None, :])

        # H V^T, of which G V^T is there already.
        through = tl.dot(weights, tl.trans(mix_grads), input_precision=SMALL_PRECISION, out_dtype=ACC)
        through = tl.dot(inner, tl.trans(mix), through, input_precision=SMALL_PRECISION, out_dtype=ACC)
        dprojected += tl.where(ok[:, None], through, 0.0)
        dscores = softmax_over_tokens_backward(projected, dprojected, HEADS_PADDED, TOKENS_PADDED)
        dscores = tl.where(used[:, None], dscores, 0.0)
        if NEEDS_BIAS:
            dbias += tl.sum(dscores, 0)
        of_tokenized = tl.trans(tl.where(ok[:, None], projected, 0.0))
        if NEEDS_VALUES:
            pooled_rows = tl.dot(
                of_tokenized, weights, pooled_rows, input_precision=SMALL_PRECISION, out_dtype=ACC
            )
        if NEEDS_VALUES or NEEDS_QUERIES:
            inner_rows = tl.dot(
                of_tokenized, inner, inner_rows, input_precision=SMALL_PRECISION, out_dtype=ACC
            )
        projected = projected.to(x.dtype.element_ty)
        dscores = dscores.to(x.dtype.element_ty)
        weights = weights.to(x.dtype.element_ty)
        inner = inner.to(x.dtype.element_ty)

        to = pixel_offsets(n, width, dx_row, dx_column, DX_LAYOUT, ALIGN)
        to_residual = pixel_offsets(n, width, dr_row, dr_column, DR_LAYOUT, ALIGN)
        more_keys = ()
        more_values = ()
        more_queries = ()
        for i in tl.static_range(OWN):
            k = (block * OWN + i) * CHUNK + c
            if HAS_GRAD:
                across = channel_offsets(k, g_channel, G_LAYOUT, ALIGN)
                arrived = load_tile(grad, from_grad, across, inside, k < OUT_CHANNELS, True)
            if NEEDS_MAP:
                rows = load_rows(grad_tokens, q, WIDTH, k, query_ok, k < OUT_CHANNELS, True)
                whole = tl.zeros((TILE, CHUNK), ACC)
                whole = product(weights, tl.trans(rows), whole, PRECISION, WIDEN)
                rows = load_rows(queries, q, OUT_CHANNELS, k, query_ok, k < OUT_CHANNELS, True)
                whole = product(inner, tl.trans(rows), whole, PRECISION, WIDEN)
                whole = tl.where(ok[:, None], whole, 0.0)  # whatever 0 times infinity is
                if HAS_GRAD:
                    whole += arrived.to(ACC)
                if NEEDS_RESIDUAL:
                    across = channel_offsets(k, dr_channel, DR_LAYOUT, ALIGN)
                    store_tile(dresidual, to_residual, across, inside, k < OUT_CHANNELS, whole, True)
            if NEEDS_X:
                rows = load_rows(keys, row, CHANNELS, k, row_ok, k < CHANNELS, True)
                out = tl.zeros((TILE, CHUNK), ACC)
                out = product(dscores, tl.trans(rows), out, PRECISION, WIDEN)
                out = tl.where(used[:, None], out, 0.0)
                if RESIDUAL_INPUT:
                    out += whole
                across = channel_offsets(k, dx_channel, DX_LAYOUT, ALIGN)
                store_tile(dx, to, across, inside, k < CHANNELS, out, True)
            across = channel_offsets(k, x_channel, LAYOUT, ALIGN)
            if NEEDS_KEYS:
                tile = load_tile(x, at, across, used, k < CHANNELS, True)
                more_keys = more_keys + (product(tl.trans(tile), dscores, dkeys[i], PRECISION, WIDEN),)
            if NEEDS_VALUES and HAS_GRAD:
                more_values = more_values + (
                    product(tl.trans(arrived), projected, dvalues[i], PRECISION, WIDEN),
                )
            if NEEDS_QUERIES and HAS_BASE:
                if RESIDUAL_INPUT:
                    tile = load_tile(x, at, across, ok, k < OUT_CHANNELS, True)
                else:
                    across = channel_offsets(k, r_channel, R_LAYOUT, ALIGN)
                    tile = load_tile(residual, from_residual, across, ok, k < OUT_CHANNELS, True)
                more_queries = more_queries + (product(tl.trans(tile), inner, dqueries[i], PRECISION, WIDEN),)
        if NEEDS_KEYS:
            dkeys = more_keys
        if NEEDS_VALUES and HAS_GRAD:
            dvalues = more_values
        if NEEDS_QUERIES and HAS_BASE:
            dqueries = more_queries

    part = split.to(tl.int64) * tl.num_programs(1) + sample
    for i in tl.static_range(OWN):
        k = (block * OWN + i) * CHUNK + c
        if NEEDS_KEYS:
            rows_at = part_dkeys + part * (HEADS * TOKENS * CHANNELS) + row[None, :] * CHANNELS + k[:, None]
            tl.store(rows_at, dkeys[i], mask=(k < CHANNELS)[:, None] & is_row[None, :])
        if NEEDS_VALUES:
            own = (k < OUT_CHANNELS)[:, None] & is_row[None, :]
            if HEADS > 1:
                own = own & ((k // (OUT_CHANNELS // HEADS))[:, None] == head[None, :])
            rows_at = part_dvalues + part * (TOKENS * OUT_CHANNELS)
            rows_at += token[None, :] * OUT_CHANNELS + k[:, None]
            tl.store(rows_at, dvalues[i], mask=own)
        if NEEDS_QUERIES:
            rows_at = part_dqueries + part * (QUERIES * OUT_CHANNELS) + q[None, :] * OUT_CHANNELS + k[:, None]
            tl.store(rows_at, dqueries[i], mask=(k < OUT_CHANNELS)[:, None] & query_ok[None, :])
    if block == 0:
        if NEEDS_BIAS:
            tl.store(part_dbias + part * (HEADS * TOKENS) + row, dbias, mask=is_row)
        if NEEDS_VALUES or NEEDS_QUERIES:
            few_at = part_rows + part * (2 * HEADS * TOKENS * QUERIES) + row[:, None] * QUERIES + q[None, :]
            tl.store(few_at, pooled_rows, mask=is_row[:, None] & query_ok[None, :])
            few_at += HEADS * TOKENS * QUERIES
            tl.store(few_at, inner_rows, mask=is_row[:, None] & query_ok[None, :])

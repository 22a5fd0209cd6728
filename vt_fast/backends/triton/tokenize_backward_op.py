"""tokenize's backward: the kernel and how it is launched."""

from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from vt_fast.backends.contract import TokenizeBackward, TokenizeGradients
from vt_fast.backends.triton import maps, settings
from vt_fast.backends.triton.bags import NO_BAGS, clear_without_bags, cut_bags, piece_of, summed_by_bag
from vt_fast.backends.triton.compiling import checked
from vt_fast.backends.triton.pixel_softmax import (
    add_extra_grads,
    add_moments,
    extra_values_gradient,
    inverse_deviation,
    load_token_bias,
    make_deltas,
    normalised,
    of_normalised,
    query_rows,
    softmax_over_pixels_backward,
    taking_part,
)
from vt_fast.backends.triton.primitives import (
    UNSPECIALIZED,
    first_walk,
    leave_sums,
    load_rows,
    next_tile,
    own_chunk,
    product,
    rounded_weights,
    second_walk,
    store_sums,
    weighted_product,
    zero_sums,
)
from vt_fast.backends.triton.schedule import (
    attempt,
    config,
    cut,
    cut_across,
    launch,
    part_dtype,
    summed,
)
from vt_fast.backends.triton.settings import Problem, Setting, ceil_div, power_of_two
from vt_fast.backends.triton.token_softmax import weigh, weigh_backward
from vt_fast.backends.triton.tokenize_op import (
    Queries,
    may_be_partial,
    narrow_rows,
    pooled_channels,
    separate_heads,
    sums_of_rows,
    wide_rows,
    wide_tokens,
)
from vt_fast.layout import channel_count, pixel_count
from vt_fast.precision import compute_dtype


@checked
@triton.jit(do_not_specialize=UNSPECIALIZED)
def tokenize_backward(
    x,
    values,
    queries,
    query_sums,
    token_bias,
    scores,
    grad_tokens,
    grad_sums,
    per_pixel,
    bags,
    epsilon,
    lse,
    delta,
    dx,
    dvalues,
    dqueries,
    dtoken_bias,
    dscores,
    dpixel_bias,
    attention,
    pixels,
    width,
    batch,
    tiles_each,
    parts,
    per_part,
    cfg: tl.constexpr,
):
    """One pass over the maps.

    Grid: BLOCKS of channels x HEADS x parts (of each sample, unless ACROSS).

    Tiles of pixels are counted on from sample to sample, ``tiles_each`` in each; a part is ``per_part`` of
    them, of one sample, or ACROSS samples, where these share the queries: then there can be fewer parts than
    samples. grad_tokens (B, QUERIES, HEADS * OUT_CHANNELS + EXTRA) in x's dtype; lse and delta
    (B, HEADS * QUERIES), or None and the gradient of the mass, if any; dqueries, if any,
    (B, parts, HEADS, QUERIES, CHANNELS), dtoken_bias (B, parts, HEADS, QUERIES), ACROSS without B, or, with
    BIAS_EACH, (tiles, HEADS, QUERIES); dpixel_bias, if any, (HEADS, B, pixels); attention, if any,
    (B, pixels, QUERIES): the weights, where a gradient is wanted to which all samples contribute; dscores, if
    any, as scores. With bags all of them are one sample of the maps. Parts are pieces, or, ACROSS, tiles are.
    """
    QUERIES: tl.constexpr = cfg.QUERIES_PADDED
    POOLING: tl.constexpr = cfg.POOLING  # Triton 3.6 passes no text of a tuple
    TILE: tl.constexpr = cfg.TILE
    OWN: tl.constexpr = cfg.OWN
    WIDTH: tl.constexpr = cfg.HEADS * cfg.OUT_CHANNELS + cfg.EXTRA
    program = tl.program_id(0)
    block = program % cfg.BLOCKS
    head = program // cfg.BLOCKS % cfg.HEADS
    part = program // (cfg.BLOCKS * cfg.HEADS)
    index = (part * cfg.HEADS + head).to(tl.int64)
    q, exists = query_rows(cfg)
    query_ok = exists
    of_queries = 0
    if cfg.HAS_ROWS:
        of_queries = queries.data + head * (cfg.QUERIES * cfg.CHANNELS)
    of_grads = grad_tokens + head * cfg.OUT_CHANNELS
    pixels *= cfg.PIXEL_ALIGN
    if cfg.ACROSS:
        only = tl.zeros((), tl.int64)
        begin = part * per_part
        end = tl.minimum(begin + per_part, batch * tiles_each)
    elif bags.bag is not None:
        only, first, stop = piece_of(bags, part)
        begin = 0
        end = (stop - first + TILE - 1) // TILE
    else:
        only = (part // parts).to(tl.int64)
        begin = part % parts * per_part
        end = tl.minimum(begin + per_part, tiles_each)

    sums = zero_sums(QUERIES, cfg)
    bias_sums = tl.zeros((QUERIES,), cfg.ACC)
    for tile_index in tl.range(begin, end):
        if bags.bag is not None:
            plane = tl.zeros((), tl.int64)
            if cfg.ACROSS:
                sample, start, stop = piece_of(bags, tile_index)
            else:
                sample = only
                start = first + tile_index * TILE
        else:
            if cfg.ACROSS:
                sample = (tile_index // tiles_each).to(tl.int64)
                start = tile_index % tiles_each * TILE
            else:
                sample = only
                start = tile_index * TILE
            plane = sample
            stop = pixels
        n, inside, ok, bias = taking_part(per_pixel, start, stop, plane * pixels, cfg)
        tile = maps.tile_of(x, plane, head.to(tl.int64) * cfg.CHANNELS, n, width, cfg)
        to = maps.tile_of(dx, plane, head.to(tl.int64) * cfg.CHANNELS, n, width, cfg)
        pooled = tile
        to_pooled = to
        if values.data is not None:
            pooled = maps.tile_of(values, plane, head.to(tl.int64) * cfg.OUT_CHANNELS, n, width, cfg)
            to_pooled = maps.tile_of(dvalues, plane, head.to(tl.int64) * cfg.OUT_CHANNELS, n, width, cfg)
        query = 0
        if cfg.HAS_ROWS:
            query = of_queries + sample * queries.batch
        grad = of_grads + sample * (cfg.QUERIES * WIDTH)
        at = (sample * cfg.HEADS + head) * cfg.QUERIES + q
        if cfg.POOLING != "pixels" or token_bias.data is not None:
            row_bias = load_token_bias(token_bias, sample, head, q, exists, cfg)
            query_ok = row_bias != -float("inf")
        if cfg.POOLING == "pixels":
            log_sums = tl.load(lse + at, mask=query_ok, other=0.0)
            if cfg.PARTIAL:
                # Rows without weights have no gradients, whatever arrives for them.
                query_ok = query_ok & (log_sums != -float("inf"))
        if delta is not None:
            means = tl.load(delta + at, mask=query_ok, other=0.0)
        small = (query, grad, q, query_ok, exists)
        zeros = tl.zeros((TILE, QUERIES), cfg.ACC)
        reading = (tile, pooled, values.data, ok, small)
        if cfg.NORM:
            blank = tl.zeros((TILE,), cfg.ACC)
            found, kept = first_walk(add_grads_and_moments, (zeros, zeros, blank, blank), reading, cfg)
            logits, grads, mean, squares = found
            inverse = inverse_deviation(squares, epsilon, cfg)
            of_grad_sums = tl.load(grad_sums + at, mask=query_ok, other=0.0)
            grads = of_normalised(grads, mean, inverse, of_grad_sums)
            if cfg.HAS_ROWS:
                at_sums = query_sums.data + sample * query_sums.batch + q
                of_query_sums = tl.load(at_sums, mask=query_ok, other=0.0)
                logits = of_normalised(logits, mean, inverse, of_query_sums)
            normalised_logits = logits
            normalised_grads = grads
        else:
            both, kept = first_walk(add_logits_and_grads, (zeros, zeros), reading, cfg)
            logits, grads = both
        if cfg.EXTRA > 0:
            grads = add_extra_grads(grads, grad + cfg.OUT_CHANNELS, per_pixel, n, ok, q, query_ok, WIDTH, cfg)
        if scores is not None:
            first_row = (plane * cfg.HEADS + head) * cfg.QUERIES
            at_scores = maps.score_places(scores, first_row, q, n, pixels)
            logits += tl.load(at_scores, mask=ok[:, None] & query_ok[None, :], other=0.0).to(cfg.ACC)
        if per_pixel.bias is not None:
            logits += bias[:, None]
        if cfg.POOLING == "pixels":
            if token_bias.data is not None:
                logits += row_bias[None, :]
            weights, inner = softmax_over_pixels_backward(logits, grads, log_sums, means, ok, query_ok)
        else:
            if delta is not None:
                grads += means[None, :]
            weights = weigh(logits, row_bias, POOLING, cfg)
            inner = weigh_backward(weights, grads, row_bias, POOLING, cfg)
            weights = tl.where(ok[:, None], weights, 0.0)
            inner = tl.where(ok[:, None], inner, 0.0)
        if dtoken_bias is not None:
            if not cfg.BIAS_EACH:
                bias_sums += tl.sum(inner, 0)
        if block == 0:
            if dtoken_bias is not None:
                if cfg.BIAS_EACH:
                    of_tile = (tile_index * cfg.HEADS + head).to(tl.int64) * cfg.QUERIES + q
                    tl.store(dtoken_bias + of_tile, tl.sum(inner, 0), mask=exists)
            if dpixel_bias is not None:
                tl.store(dpixel_bias + (head * batch + plane) * pixels + n, tl.sum(inner, 1), mask=inside)
            if attention is not None:
                to_attention = attention + (sample * pixels + n)[:, None] * cfg.QUERIES + q[None, :]
                tl.store(to_attention, weights, mask=inside[:, None] & query_ok[None, :])
            if dscores is not None:
                to_scores = maps.score_places(dscores, (plane * cfg.HEADS + head) * cfg.QUERIES, q, n, pixels)
                there = inside[:, None] & exists[None, :]
                tl.store(to_scores, inner.to(dscores.dtype.element_ty), mask=there)
        weights = rounded_weights(weights, x.data.dtype.element_ty, cfg)
        inner = rounded_weights(inner, x.data.dtype.element_ty, cfg)
        norm = ()
        if cfg.NORM:
            # What each pixel's gradient has along 1 and along the normalised pixel is no gradient of x.
            ones = tl.sum(weights.to(cfg.ACC) * of_grad_sums[None, :], 1)
            along = tl.sum(weights.to(cfg.ACC) * normalised_grads, 1)
            if cfg.HAS_ROWS:
                taken = inner.to(cfg.ACC)
                ones += tl.sum(taken * of_query_sums[None, :], 1)
                along += tl.sum(taken * normalised_logits, 1)
            norm = (mean, inverse, ones / cfg.CHANNELS, along / cfg.CHANNELS)
        sums = second_walk(
            store_maps_and_add_dqueries, sums,
            (tile, to, values.data, dvalues.data, to_pooled, kept, ok, inside, small, (weights, inner),
             dqueries, (index, tile_index > begin), norm),
            block, cfg,
        )  # fmt: skip
        next_tile(cfg)

    if dqueries is not None:
        if cfg.LOOPS == 1:
            for i in tl.static_range(OWN):
                store_sums(
                    dqueries, index, own_chunk(block, i, cfg), q, exists[None, :], sums[i], False,
                    cfg.CHANNELS, cfg.QUERIES, True,
                )  # fmt: skip
    if dtoken_bias is not None and not cfg.BIAS_EACH:
        if block == 0:
            to_bias = dtoken_bias + index * cfg.QUERIES + q
            tl.store(to_bias, bias_sums.to(dtoken_bias.dtype.element_ty), mask=exists)


@triton.jit
def add_logits_and_grads(sums, operands, i, k, cfg: tl.constexpr):
    """The first walk's step: a pixel's products with the queries and with the tokens' gradients."""
    WIDTH: tl.constexpr = cfg.HEADS * cfg.OUT_CHANNELS + cfg.EXTRA
    logits, grads = sums
    tile, pooled, values, ok, small = operands
    query, grad, q, query_ok, _exists = small
    if cfg.HAS_ROWS or values is None:
        chunk = maps.load_chunk(tile, k, ok, cfg.CHANNELS, cfg.RAGGED)
        value = chunk
    if cfg.HAS_ROWS:
        of_query = load_rows(query, q, cfg.CHANNELS, k, query_ok, k < cfg.CHANNELS, cfg.RAGGED)
        logits = product(chunk, of_query, logits, cfg)
    if values is not None:
        value = maps.load_chunk(pooled, k, ok, cfg.OUT_CHANNELS, cfg.OUT_RAGGED)
        if not cfg.HAS_ROWS:
            chunk = value
    of_grad = load_rows(grad, q, WIDTH, k, query_ok, k < cfg.OUT_CHANNELS, cfg.OUT_RAGGED)
    grads = product(value, of_grad, grads, cfg)
    return (logits, grads), (chunk,)


@triton.jit
def add_grads_and_moments(sums, operands, i, k, cfg: tl.constexpr):
    """The same, with the pixels' moments."""
    logits, grads, mean, squares = sums
    both, chunks = add_logits_and_grads((logits, grads), operands, i, k, cfg)
    mean, squares = add_moments(mean, squares, chunks[0], i, k, cfg)
    return (both[0], both[1], mean, squares), chunks


@triton.jit
def store_maps_and_add_dqueries(sums, operands, i, k, cfg: tl.constexpr):
    """The second walk's step: dx = dS queries, dvalues = A dT, or their sum as dx; and dqueries = dS^T x."""
    WIDTH: tl.constexpr = cfg.HEADS * cfg.OUT_CHANNELS + cfg.EXTRA
    TILE: tl.constexpr = cfg.TILE
    CHUNK: tl.constexpr = cfg.CHUNK
    tile, to, values, dvalues, to_pooled, kept, ok, inside, small, products, dqueries, slot, norm = operands
    weights, inner = products
    query, grad, q, query_ok, exists = small
    if cfg.NEEDS_X or dvalues is not None:
        out = tl.zeros((TILE, CHUNK), cfg.ACC)
        if values is None or dvalues is not None:
            of_grad = load_rows(grad, q, WIDTH, k, query_ok, k < cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED)
            out = weighted_product(weights, tl.trans(of_grad), out, cfg)
        if dvalues is not None:
            if cfg.MASKED:
                out = tl.where(ok[:, None], out, 0.0)
            maps.store_chunk(to_pooled, k, inside, out, cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED)
            out = tl.zeros((TILE, CHUNK), cfg.ACC)
    if cfg.NEEDS_X:
        if cfg.HAS_ROWS:
            of_query = load_rows(query, q, cfg.CHANNELS, k, query_ok, k < cfg.CHANNELS, cfg.OWN_RAGGED)
            out = weighted_product(inner, tl.trans(of_query), out, cfg)
        if cfg.NORM:
            mean, inverse, ones, along = norm
            pixel = maps.chunk_again(kept, i, 0, tile, k, ok, cfg.CHANNELS, cfg.OWN_RAGGED, cfg)
            component = normalised(pixel, mean, inverse) * along[:, None]
            out = (out - ones[:, None] - component) * inverse[:, None]
        if cfg.MASKED:
            # A pixel that takes no part has a gradient of 0, whatever the others are.
            out = tl.where(ok[:, None], out, 0.0)
        maps.store_chunk(to, k, inside, out, cfg.CHANNELS, cfg.OWN_RAGGED)
    if dqueries is None:
        return (sums[i],)
    else:
        chunk = maps.chunk_again(kept, i, 0, tile, k, ok, cfg.CHANNELS, cfg.OWN_RAGGED, cfg)
        if cfg.NORM:
            chunk = normalised(chunk, norm[0], norm[1]).to(inner.dtype)
        added = weighted_product(tl.trans(chunk), inner, sums[i], cfg)
        return leave_sums(dqueries, slot, k, q, exists[None, :], added, cfg.CHANNELS, cfg.QUERIES, cfg)


def wide_backward(call: TokenizeBackward) -> TokenizeGradients:
    """The gradients by those of the call with rows of full width."""
    queries, num_heads = cast(Tensor, call.queries), call.num_heads
    found = backward(
        call._replace(
            queries=wide_rows(queries, num_heads),
            grad_tokens=wide_tokens(call.grad_tokens, num_heads),
            tokens=wide_tokens(call.tokens, num_heads),
            num_heads=1,
        )
    )
    if found.queries is None:
        return found
    return found._replace(queries=narrow_rows(found.queries, num_heads))


def backward(call: TokenizeBackward) -> TokenizeGradients:
    """The gradients that are needed."""
    if call.layer_norm_eps is not None and separate_heads(call) > 1:
        return wide_backward(call)
    x, num_heads, dtype = maps.batched(call.x), separate_heads(call), call.x.dtype
    needs_x, needs_queries, needs_pixel_bias, needs_extra_values = call.needs[:4]
    needs_queries = needs_queries and call.queries is not None
    batch, pixels = x.shape[0], pixel_count(x)
    rows = Queries.of(call)
    count, channels, out_channels = rows.QUERIES, channel_count(x) // num_heads, pooled_channels(call)
    widest = max(channels, out_channels)
    over_pixels, needs_token_bias = call.normalize == "pixels", call.token_bias is not None and call.needs[6]
    extra = 0 if call.extra_values is None else call.extra_values.shape[1]
    sums = compute_dtype(dtype)
    wide = settings.wide_weights(dtype, over_pixels)
    dx = torch.empty_like(call.x) if needs_x else None
    values = None if call.values is None else maps.batched(call.values)
    dvalues = torch.empty_like(call.values) if call.values is not None and call.needs[4] else None
    if dx is not None and values is not None and call.queries is None:
        dx.zero_()  # x has a shape alone
        needs_x = False
    scores = None if call.scores is None else call.scores.contiguous()
    dscores = torch.empty_like(scores) if scores is not None and call.needs[5] else None
    dpixel_bias = x.new_empty((num_heads, batch, pixels), dtype=sums) if needs_pixel_bias else None
    attention = x.new_empty((batch, pixels, count), dtype=sums) if needs_extra_values else None
    clear_without_bags(call.offsets, dx, dvalues, dscores, dpixel_bias)
    made_maps = [None if each is None else maps.batched(each) for each in (dx, dvalues)]
    placed = maps.place(pixels, widest * num_heads, x, values, *made_maps)
    x_map, values_map, dx_map, dvalues_map = placed.maps
    queries, per_pixel = (
        maps.rows(call.queries),
        maps.pixel_operands(call.mask, call.pixel_bias, call.extra_values),
    )
    token_bias = maps.bias_rows(call.token_bias)
    # Sums over pixels that gradients are made of, and whether the samples share them.
    operands: list[tuple[Tensor | None, bool, int, tuple[int, ...]]] = [
        (call.queries, needs_queries, 2, (num_heads, count, channels)),
        (call.token_bias, needs_token_bias and not over_pixels, 1, (num_heads, count)),
    ]
    wanted = [each.dim() == dim for each, needed, dim, _ in operands if each is not None and needed]
    # Where the queries are shared and token_bias is not, each tile leaves a sum of its own for the latter.
    shared, bias_shared = wanted[:1] == [True], wanted[-1:] == [True]
    lse, grad_tokens = call.stats.contiguous(), call.grad_tokens.contiguous()

    query_sums, grad_rows = sums_of_rows(call), grad_tokens.to(dtype)
    grad_sums = None
    if call.layer_norm_eps is not None:
        grad_sums = grad_rows[..., :out_channels].to(sums).sum(-1)

    def run(setting: Setting) -> list[Tensor | None]:
        items, each = batch * num_heads, 4 * num_heads * count * channels
        made = cut(setting, x, max(pixels, 1), widest, items, batch * each)
        tiles_each, pieces = ceil_div(pixels, setting.tile), None
        # Each sample leaves a part of its own, and all of them may be too much.
        across = shared and (batch > 1 or call.offsets is not None)
        if call.offsets is not None:
            pieces = cut_bags(call.offsets, pixels, setting.tile if across else made.each)
            tiles_each = pieces.count
            if across:
                made = cut_across(setting, x, tiles_each, widest, num_heads, each)
        elif across:
            fewer = cut_across(setting, x, batch * tiles_each, widest, num_heads, each)
            across = fewer.parts < batch * made.parts
            made = fewer if across else made
        samples = 1 if across else batch
        splits = made.parts if across or pieces is None else pieces.count
        parts: list[Tensor | None] = []
        for operand, needed, dim, shape in operands:
            if operand is None or not needed:
                parts.append(None)
                continue
            if across and operand.dim() != dim:
                parts.append(x.new_empty((batch, tiles_each, *shape), dtype=sums))
                continue
            single = made.direct and pieces is None and operand.dim() != dim
            part = x.new_empty((samples, splits, *shape), dtype=part_dtype(operand, single, sums))
            if pieces is not None and made.loops > 1:
                part.zero_()  # a piece without pixels leaves nothing
            parts.append(part)
        delta = call.grad_stats
        if over_pixels:
            delta = make_deltas(grad_tokens, call.tokens, delta, lse, num_heads)
        elif delta is not None:
            delta = delta.contiguous()
        cfg = config(
            setting, made, placed, dtype, channels=channels, out_channels=out_channels, HEADS=num_heads,
            **rows._asdict(), EXTRA=extra, EXTRA_PADDED=power_of_two(extra, 16), ACROSS=across,
            BIAS_EACH=across and not bias_shared, NEEDS_X=needs_x,
            MASKED=call.mask is not None or call.pixel_bias is not None,
            POOLING=call.normalize or "none", PARTIAL=may_be_partial(call),
            HAS_ROWS=call.queries is not None, NORM=call.layer_norm_eps is not None,
            WIDE_WEIGHTS=wide,
        )  # fmt: skip
        launch(
            tokenize_backward, (made.blocks * num_heads * samples * splits,), x_map, values_map, queries,
            query_sums, token_bias, scores, grad_rows, grad_sums, per_pixel,
            NO_BAGS if pieces is None else pieces.bags, call.layer_norm_eps, lse if over_pixels else None,
            delta, dx_map, dvalues_map, *parts, dscores, dpixel_bias, attention, placed.pixels, placed.width,
            batch, tiles_each, splits, made.each if across else ceil_div(made.each, setting.tile), cfg=cfg,
            num_warps=setting.warps, num_stages=setting.stages,
        )  # fmt: skip
        found: list[Tensor | None] = []
        for left, (operand, _, dim, _) in zip(parts, operands, strict=True):
            if left is None or operand is None:
                found.append(None)
            elif pieces is not None and operand.dim() != dim:
                found.append(summed_by_bag(left, pieces, operand))
            else:
                found.append(summed(left, operand, shared=operand.dim() == dim))
        return found

    kind, padded = settings.kind(dtype, wide), rows.QUERIES_PADDED
    # With values there are as many maps and rows to read as in project's backward.
    kernel = "tokenize_backward" if values is None else "project_backward"
    problem = Problem(kernel, kind, placed.layout, widest, padded, pixels)
    dqueries, dtoken_bias = attempt(problem, call, run)
    if call.token_bias is not None and needs_token_bias and over_pixels:
        # The tokens do not depend on it, and each row of dS sums to what arrives for its lse.
        arriving = torch.zeros_like(lse) if call.grad_stats is None else call.grad_stats
        arriving = arriving.masked_fill(lse == -torch.inf, 0)
        dtoken_bias = arriving if call.token_bias.dim() == 2 else arriving.sum(0)
    dbias = None
    if dpixel_bias is not None and call.pixel_bias is not None:
        dbias = (dpixel_bias[0] if num_heads == 1 else dpixel_bias.sum(0)).view(call.pixel_bias.shape)
    dextra = None if attention is None else extra_values_gradient(attention, grad_tokens[..., out_channels:])
    if dscores is not None and call.scores is not None:
        dscores = dscores.view(call.scores.shape)
    return TokenizeGradients(
        x=dx,
        queries=dqueries,
        pixel_bias=dbias,
        extra_values=dextra,
        values=dvalues,
        scores=dscores,
        token_bias=dtoken_bias,
    )

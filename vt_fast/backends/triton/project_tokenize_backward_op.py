"""project_tokenize's backward: the kernel and how it is launched; and by project's and tokenize's backwards.

The map is recomputed from its parts, and never stored. With the map's whole gradient H = G + A dT + dS W,
sums over pixels of H or of the map are G^T P or dS^T R and what goes through the few rows P^T A and P^T dS,
as in :mod:`vt_fast.backends.triton.project_tokenize_op`.
"""

from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from vt_fast.backends.contract import (
    ProjectBackward,
    ProjectTokenizeBackward,
    ProjectTokenizeGradients,
    TokenizeBackward,
)
from vt_fast.backends.triton import maps, project_op, settings, tokenize_backward_op
from vt_fast.backends.triton.compiling import checked
from vt_fast.backends.triton.pixel_softmax import (
    add_extra_grads,
    extra_values_gradient,
    make_deltas,
    softmax_over_pixels_backward,
    taking_part,
)
from vt_fast.backends.triton.primitives import (
    UNSPECIALIZED,
    first_walk,
    leave_sums,
    next_tile,
    own_chunk,
    product,
    program_of,
    second_walk,
    small_logits,
    small_product,
    store_sums,
    zero_sums,
)
from vt_fast.backends.triton.project_tokenize_op import (
    add_mixed,
    add_outer,
    kept_rows,
    load_queries,
    mix,
    projected_map,
    too_many_rows,
)
from vt_fast.backends.triton.schedule import attempt, config, cut, launch
from vt_fast.backends.triton.settings import Problem, Setting, power_of_two
from vt_fast.backends.triton.token_softmax import (
    Heads,
    SmallGradients,
    leave_dkeys,
    leave_dvalues,
    load_keys,
    load_values,
    numbers_each,
    residual_kind,
    store_dkeys,
    store_dtoken_bias,
    store_dvalues,
    token_rows,
    weigh,
    weigh_backward,
)
from vt_fast.layout import channel_count, per_pixel, pixel_count
from vt_fast.precision import compute_dtype


class Tiles(NamedTuple):
    """The tile's pixels in each map, and which of them exist, are tokenized, or count at all."""

    x: Any
    grad: Any
    residual: Any
    dx: Any
    dresidual: Any
    inside: Any
    ok: Any


class Small(NamedTuple):
    """A sample's small operands. Triton's tuples have an attribute ``values`` of their own."""

    keys: Any
    value_rows: Any
    queries: Any
    grad_tokens: Any
    tokens: Any


class Weights(NamedTuple):
    """A tile's weights and gradients of logits, of both softmaxes, and the few rows P^T A and P^T dS."""

    projected: Any
    dscores: Any
    weights: Any
    inner: Any
    pooled_rows: Any
    inner_rows: Any


@checked
@triton.jit(do_not_specialize=UNSPECIALIZED)
def project_tokenize_backward(
    grad,
    grad_tokens,
    x,
    keys,
    values,
    token_bias,
    residual,
    queries,
    per_pixel,
    lse,
    delta,
    dx,
    dresidual,
    parts,
    dpixel_bias,
    attention,
    pixels,
    width,
    splits,
    per_split,
    cfg: tl.constexpr,
):
    """Grid: BLOCKS of the channels of x and of the result x splits x B.

    The operands are those of the backwards of project and of tokenize. KEEP: tiles of the map, of the
    residual and of the gradient stay on the chip.
    """
    TILE: tl.constexpr = cfg.TILE
    SPREADING: tl.constexpr = cfg.SPREADING  # Triton 3.6 passes no text of a tuple
    OWN: tl.constexpr = cfg.OWN
    ROWS: tl.constexpr = cfg.HEADS_PADDED * cfg.TOKENS_PADDED
    QUERIES: tl.constexpr = cfg.QUERIES_PADDED
    WIDTH: tl.constexpr = cfg.OUT_CHANNELS + cfg.EXTRA
    block, split, sample, part = program_of(splits, cfg)
    q = tl.arange(0, QUERIES)
    query_ok = q < cfg.QUERIES
    tokens, bias = token_rows(token_bias, sample, cfg)
    small = Small(
        keys.data + sample * keys.batch, values.data + sample * values.batch,
        queries.data + sample * queries.batch, grad_tokens + sample * (cfg.QUERIES * WIDTH), tokens,
    )  # fmt: skip
    mixed = mix(small.value_rows, tokens, small.queries, cfg.OUT_CHANNELS, cfg)
    mixed_grads = mix(small.value_rows, tokens, small.grad_tokens, WIDTH, cfg)
    log_sums = tl.load(lse + sample * cfg.QUERIES + q, mask=query_ok, other=0.0)
    means = tl.load(delta + sample * cfg.QUERIES + q, mask=query_ok, other=0.0)
    pixels *= cfg.PIXEL_ALIGN

    dvalues = zero_sums(ROWS, cfg)
    dkeys = zero_sums(ROWS, cfg)
    dqueries = zero_sums(QUERIES, cfg)
    both_sums = ()
    for i in tl.static_range(OWN):
        both_sums = both_sums + ((dkeys[i], dqueries[i]),)
    dtoken_bias = tl.zeros((ROWS,), cfg.ACC)
    pooled_rows = tl.zeros((ROWS, QUERIES), cfg.ACC)
    inner_rows = tl.zeros((ROWS, QUERIES), cfg.ACC)
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n, inside, ok, pixel_bias = taking_part(per_pixel, start, end, sample * pixels, cfg)
        tiles = Tiles(
            maps.tile_of(x, sample, 0, n, width, cfg), maps.tile_of(grad, sample, 0, n, width, cfg),
            maps.tile_of(residual, sample, 0, n, width, cfg), maps.tile_of(dx, sample, 0, n, width, cfg),
            maps.tile_of(dresidual, sample, 0, n, width, cfg), inside, ok,
        )  # fmt: skip
        scores = tl.zeros((TILE, ROWS), cfg.ACC)
        logits = tl.zeros((TILE, QUERIES), cfg.ACC)
        sums, kept = first_walk(
            add_all_scores, (scores, scores, logits, logits, tl.zeros((TILE,), tl.int32)), (tiles, small), cfg
        )
        dprojected, scores, logits, grads, arriving = sums
        # A pixel that is not tokenized counts only where a gradient of the map arrives.
        used = ok
        if cfg.MASKED and cfg.HAS_GRAD_MAP:
            used = ok | (arriving > 0)
        projected = weigh(scores, bias, SPREADING, cfg)
        projected = tl.where(used[:, None], projected, 0.0)
        logits = small_logits(projected, mixed, logits, cfg)
        grads = small_product(projected, mixed_grads, grads, cfg)
        if cfg.EXTRA > 0:
            grads = add_extra_grads(
                grads, small.grad_tokens + cfg.OUT_CHANNELS, per_pixel, n, ok, q, query_ok, WIDTH, cfg
            )
        if per_pixel.bias is not None:
            logits += pixel_bias[:, None]
        weights, inner = softmax_over_pixels_backward(logits, grads, log_sums, means, ok, query_ok)
        if block == 0:
            if dpixel_bias is not None:
                tl.store(dpixel_bias + sample * pixels + n, tl.sum(inner, 1), mask=inside)
            if attention is not None:
                to_attention = attention + (sample * pixels + n)[:, None] * cfg.QUERIES + q[None, :]
                tl.store(to_attention, weights, mask=inside[:, None] & query_ok[None, :])

        # H V^T, of which G V^T is there already.
        through = small_product(weights, tl.trans(mixed_grads), tl.zeros((TILE, ROWS), cfg.ACC), cfg)
        through = small_product(inner, tl.trans(mixed), through, cfg)
        dprojected += tl.where(ok[:, None], through, 0.0)
        dscores = weigh_backward(projected, dprojected, bias, SPREADING, cfg)
        dscores = tl.where(used[:, None], dscores, 0.0)
        if parts.dtoken_bias is not None:
            dtoken_bias += tl.sum(dscores, 0)
        projected = projected.to(x.data.dtype.element_ty)
        dscores = dscores.to(x.data.dtype.element_ty)
        tokenized = projected
        if cfg.MASKED:
            tokenized = tl.where(ok[:, None], projected, 0.0)
        if parts.dvalues is not None:
            pooled_rows = add_outer(tokenized, weights, kept_rows(pooled_rows, cfg), cfg)
        if parts.dvalues is not None or parts.dqueries is not None:
            inner_rows = add_outer(tokenized, inner, kept_rows(inner_rows, cfg), cfg)
        weights = weights.to(x.data.dtype.element_ty)
        inner = inner.to(x.data.dtype.element_ty)
        found = Weights(projected, dscores, weights, inner, pooled_rows, inner_rows)
        # In two loops, as each needs fewer registers than both in one.
        dvalues = second_walk(
            store_maps_and_add_dvalues, dvalues,
            (tiles, used, kept, small, found, parts, (part, start > begin)), block, cfg,
        )  # fmt: skip
        if parts.dkeys is not None or parts.dqueries is not None:
            both_sums = second_walk(
                add_dkeys_and_dqueries, both_sums,
                (tiles, used, kept, small, found, parts, (part, start > begin)), block, cfg,
            )  # fmt: skip
        next_tile(cfg)

    if cfg.LOOPS == 1:
        for i in tl.static_range(OWN):
            k = own_chunk(block, i, cfg)
            if parts.dkeys is not None:
                store_dkeys(parts.dkeys, part, tokens, k, both_sums[i][0], False, True, cfg)
            if parts.dvalues is not None:
                grad_row = load_queries(small.grad_tokens, k, WIDTH, cfg.OUT_OWN_RAGGED, cfg)
                added = add_mixed(grad_row, tl.trans(pooled_rows), dvalues[i], cfg)
                query = load_queries(small.queries, k, cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED, cfg)
                added = add_mixed(query, tl.trans(inner_rows), added, cfg)
                store_dvalues(parts.dvalues, part, tokens, k, added, False, True, cfg)
            if parts.dqueries is not None:
                value = load_values(small.value_rows, tokens, k, cfg.OUT_OWN_RAGGED, cfg)
                added = add_mixed(value, inner_rows, both_sums[i][1], cfg)
                store_sums(
                    parts.dqueries, part, k, q, query_ok[None, :], added, False, cfg.OUT_CHANNELS,
                    cfg.QUERIES, True,
                )  # fmt: skip
    if block == 0:
        if parts.dtoken_bias is not None:
            store_dtoken_bias(parts.dtoken_bias, part, tokens, dtoken_bias, cfg)


@triton.jit
def add_all_scores(sums, operands, i, k, cfg: tl.constexpr):
    """The first walk's step: G V^T, the scores, the residual's share of the logits and of their gradients.

    And where G is not 0. The chunks are of x, of the residual and of the gradient; where there is none of the
    last two, that of x again.
    """
    WIDTH: tl.constexpr = cfg.OUT_CHANNELS + cfg.EXTRA
    dprojected, scores, logits, grads, arriving = sums
    tiles, small = operands
    chunk = maps.load_chunk(tiles.x, k, tiles.inside, cfg.CHANNELS, cfg.RAGGED)
    base = chunk
    arrived = chunk
    if cfg.HAS_GRAD_MAP:
        arrived = maps.load_chunk(tiles.grad, k, tiles.inside, cfg.OUT_CHANNELS, cfg.OUT_RAGGED)
        if cfg.MASKED:
            arriving = tl.maximum(arriving, tl.max((arrived != 0.0).to(tl.int32), 1))
        value = load_values(small.value_rows, small.tokens, k, cfg.OUT_RAGGED, cfg)
        dprojected = product(arrived, value, dprojected, cfg)
    scores = product(chunk, load_keys(small.keys, small.tokens, k, cfg.RAGGED, cfg), scores, cfg)
    if cfg.RESIDUAL == "map":
        base = maps.load_chunk(tiles.residual, k, tiles.ok, cfg.OUT_CHANNELS, cfg.OUT_RAGGED)
    if cfg.RESIDUAL != "none":
        query = load_queries(small.queries, k, cfg.OUT_CHANNELS, cfg.OUT_RAGGED, cfg)
        logits = product(base, query, logits, cfg)
        of_grad = load_queries(small.grad_tokens, k, WIDTH, cfg.OUT_RAGGED, cfg)
        grads = product(base, of_grad, grads, cfg)
    return (dprojected, scores, logits, grads, arriving), (chunk, base, arrived)


@triton.jit
def store_maps_and_add_dvalues(sums, operands, i, k, cfg: tl.constexpr):
    """A second walk's step: dresidual = H, dx = dS keys [+ H], and dvalues.

    What goes through the few rows is added at once where sums go to memory, else after the last tile.
    """
    TILE: tl.constexpr = cfg.TILE
    CHUNK: tl.constexpr = cfg.CHUNK
    WIDTH: tl.constexpr = cfg.OUT_CHANNELS + cfg.EXTRA
    INPUT: tl.constexpr = cfg.RESIDUAL == "input"
    tiles, used, kept, small, found, parts, slot = operands
    if cfg.HAS_GRAD_MAP:
        arrived = maps.chunk_again(
            kept, i, 2, tiles.grad, k, tiles.inside, cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED, cfg
        )
    query = load_queries(small.queries, k, cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED, cfg)
    grad_row = load_queries(small.grad_tokens, k, WIDTH, cfg.OUT_OWN_RAGGED, cfg)
    if cfg.NEEDS_RESIDUAL or (INPUT and cfg.NEEDS_X):
        whole = tl.zeros((TILE, CHUNK), cfg.ACC)
        whole = product(found.weights, tl.trans(grad_row), whole, cfg)
        whole = product(found.inner, tl.trans(query), whole, cfg)
        if cfg.MASKED:
            whole = tl.where(tiles.ok[:, None], whole, 0.0)  # whatever 0 times infinity is
        if cfg.HAS_GRAD_MAP:
            whole += arrived.to(cfg.ACC)
        if cfg.NEEDS_RESIDUAL:
            maps.store_chunk(tiles.dresidual, k, tiles.inside, whole, cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED)
    if cfg.NEEDS_X:
        key = load_keys(small.keys, small.tokens, k, cfg.OWN_RAGGED, cfg)
        dx = tl.zeros((TILE, CHUNK), cfg.ACC)
        if INPUT and not cfg.MASKED:
            dx = whole
        dx = product(found.dscores, tl.trans(key), dx, cfg)
        if cfg.MASKED:
            dx = tl.where(used[:, None], dx, 0.0)
            if INPUT:
                dx += whole
        maps.store_chunk(tiles.dx, k, tiles.inside, dx, cfg.CHANNELS, cfg.OWN_RAGGED)
    if parts.dvalues is None:
        return (sums[i],)
    else:
        added = sums[i]
        if cfg.HAS_GRAD_MAP:
            added = product(tl.trans(arrived), found.projected, added, cfg)
        if cfg.LOOPS > 1:
            added = add_mixed(grad_row, tl.trans(found.pooled_rows), added, cfg)
            added = add_mixed(query, tl.trans(found.inner_rows), added, cfg)
        return leave_dvalues(parts, slot, small.tokens, k, added, cfg)


@triton.jit
def add_dkeys_and_dqueries(sums, operands, i, k, cfg: tl.constexpr):
    """A second walk's step: dkeys = dS^T x, and the pixels' share of dqueries."""
    INPUT: tl.constexpr = cfg.RESIDUAL == "input"
    tiles, used, kept, small, found, parts, slot = operands
    dkeys, dqueries = sums[i]
    left_keys = (dkeys,)
    left_queries = (dqueries,)
    if parts.dkeys is not None or INPUT:
        chunk = maps.chunk_again(kept, i, 0, tiles.x, k, tiles.inside, cfg.CHANNELS, cfg.OWN_RAGGED, cfg)
    if parts.dkeys is not None:
        taken = chunk
        if cfg.MASKED:
            taken = tl.where(used[:, None], chunk, 0.0)
        added = product(tl.trans(taken), found.dscores, dkeys, cfg)
        left_keys = leave_dkeys(parts, slot, small.tokens, k, added, cfg)
    if parts.dqueries is not None:
        if INPUT:
            base = chunk
            if cfg.MASKED:
                base = tl.where(tiles.ok[:, None], chunk, 0.0)
        elif cfg.RESIDUAL == "map":
            base = maps.chunk_again(
                kept, i, 1, tiles.residual, k, tiles.ok, cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED, cfg
            )
        if cfg.RESIDUAL != "none":
            dqueries = product(tl.trans(base), found.inner, dqueries, cfg)
        if cfg.LOOPS > 1:
            value = load_values(small.value_rows, small.tokens, k, cfg.OUT_OWN_RAGGED, cfg)
            dqueries = add_mixed(value, found.inner_rows, dqueries, cfg)
        q = tl.arange(0, cfg.QUERIES_PADDED)
        left_queries = leave_sums(
            parts.dqueries,
            slot,
            k,
            q,
            (q < cfg.QUERIES)[None, :],
            dqueries,
            cfg.OUT_CHANNELS,
            cfg.QUERIES,
            cfg,
        )
    if cfg.LOOPS > 1:
        return ()
    else:
        return ((left_keys[0], left_queries[0]),)


def backward(call: ProjectTokenizeBackward) -> ProjectTokenizeGradients:
    """The gradients that are needed."""
    x, residual, dtype = call.x, call.residual, call.x.dtype
    needs_x, needs_keys, needs_values, needs_queries = call.needs[:4]
    needs_token_bias, needs_residual, needs_pixel_bias, needs_extra_values = call.needs[4:]
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    out_channels = call.values.shape[-1]
    widest, count = max(channels, out_channels), call.queries.shape[-2]
    extra = 0 if call.extra_values is None else call.extra_values.shape[1]
    heads, padded = Heads.of(call), power_of_two(count, 16)
    if too_many_rows(max(padded, heads.padded)):
        return _one_after_the_other(call)
    sums = compute_dtype(dtype)
    dx = torch.empty_like(x) if needs_x else None
    dresidual = torch.empty_like(residual) if residual is not None and needs_residual else None
    dpixel_bias = x.new_empty((batch, pixels), dtype=sums) if needs_pixel_bias else None
    attention = x.new_empty((batch, pixels, count), dtype=sums) if needs_extra_values else None
    grad_map = None if call.grad_map is None else call.grad_map.to(dtype)
    placed = maps.place(pixels, widest, x, grad_map, residual, dx, dresidual)
    x_map, arriving_map, residual_map, dx_map, dresidual_map = placed.maps
    keys, values, queries = maps.rows(call.keys), maps.rows(call.values), maps.rows(call.queries)
    token_bias = maps.bias_rows(call.token_bias)
    pixel_rows = maps.pixel_operands(call.mask, call.pixel_bias, call.extra_values)
    lse, grad_tokens = call.lse.contiguous(), call.grad_tokens.contiguous()

    def run(setting: Setting) -> list[Tensor | None]:
        left = numbers_each(call.keys) * needs_keys + numbers_each(call.values) * needs_values
        left += count * out_channels * needs_queries
        made = cut(setting, x, pixels, widest, batch, 4 * batch * left)
        small = SmallGradients(
            made, x, [call.keys, call.values, call.token_bias, call.queries],
            [needs_keys, needs_values, needs_token_bias, needs_queries],
        )  # fmt: skip
        delta = make_deltas(grad_tokens, call.tokens, call.grad_lse, lse, 1)
        cfg = config(
            setting, made, placed, dtype, channels=channels, out_channels=out_channels, **heads._asdict(),
            QUERIES=count, QUERIES_PADDED=padded, EXTRA=extra, EXTRA_PADDED=power_of_two(extra, 16),
            RESIDUAL=residual_kind(residual, call.residual_is_input),
            MASKED=call.mask is not None or call.pixel_bias is not None, HAS_GRAD_MAP=grad_map is not None,
            NEEDS_X=needs_x, NEEDS_RESIDUAL=dresidual is not None,
        )  # fmt: skip
        launch(
            project_tokenize_backward, (made.blocks * made.parts * batch,), arriving_map,
            grad_tokens.to(dtype), x_map, keys, values, token_bias, residual_map, queries, pixel_rows, lse,
            delta, dx_map, dresidual_map, small.parts, dpixel_bias, attention, placed.pixels, placed.width,
            made.parts, made.each, cfg=cfg, num_warps=setting.warps, num_stages=setting.stages,
        )  # fmt: skip
        return small.summed()

    problem = Problem(
        "project_tokenize_backward",
        settings.kind(dtype),
        placed.layout,
        widest,
        max(padded, heads.padded),
        pixels,
    )
    dkeys, dvalues, dtoken_bias, dqueries = attempt(problem, call, run)
    dbias = None
    if dpixel_bias is not None and call.pixel_bias is not None:
        dbias = dpixel_bias.view(call.pixel_bias.shape)
    dextra = None if attention is None else extra_values_gradient(attention, grad_tokens[..., out_channels:])
    return ProjectTokenizeGradients(
        x=dx, keys=dkeys, values=dvalues, queries=dqueries, token_bias=dtoken_bias, residual=dresidual,
        pixel_bias=dbias, extra_values=dextra,
    )  # fmt: skip


def _one_after_the_other(call: ProjectTokenizeBackward) -> ProjectTokenizeGradients:
    """With the kernels of tokenize and project, for which the map is written again."""
    needs_x, needs_keys, needs_values, needs_queries = call.needs[:4]
    needs_token_bias, needs_residual, needs_pixel_bias, needs_extra_values = call.needs[4:]
    of_tokens = tokenize_backward_op.backward(
        TokenizeBackward(
            call.grad_tokens, call.grad_lse, projected_map(call), call.queries, call.mask, call.pixel_bias,
            call.extra_values, call.tokens, call.lse, 1,
            [True, needs_queries, needs_pixel_bias, needs_extra_values],
        )
    )  # fmt: skip
    dy = cast(Tensor, of_tokens.x)
    if call.grad_map is not None:
        dy = dy + call.grad_map.to(dy.dtype)
    of_map = project_op.backward(
        ProjectBackward(
            dy, _used(call, dy), call.keys, call.values, call.token_bias, call.residual_is_input,
            call.num_heads, [needs_x, needs_keys, needs_values, needs_token_bias],
        )
    )  # fmt: skip
    return ProjectTokenizeGradients(
        x=of_map.x,
        keys=of_map.keys,
        values=of_map.values,
        queries=of_tokens.queries,
        token_bias=of_map.token_bias,
        residual=dy if needs_residual and call.residual is not None else None,
        pixel_bias=of_tokens.pixel_bias,
        extra_values=of_tokens.extra_values,
    )


def _used(call: ProjectTokenizeBackward, dy: Tensor) -> Tensor:
    """x, and 0 in pixels that take no part and to which no gradient arrives, whatever is there."""
    x = call.x
    bias, part = per_pixel(call.pixel_bias), per_pixel(call.mask)
    if bias is not None:
        kept = bias != -torch.inf
        part = kept if part is None else part & kept
    if part is None:
        return x
    if x.dim() == 3:
        return torch.where((part | (dy != 0).any(-1)).unsqueeze(-1), x, 0)
    used = part | (dy != 0).any(1).flatten(1)
    return torch.where(used.view(x.shape[0], 1, *x.shape[2:]), x, 0)

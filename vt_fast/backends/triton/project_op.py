"""project and its backward: kernels and how they are launched."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vt_fast.backends.contract import Project, ProjectBackward, ProjectGradients
from vt_fast.backends.triton import maps, settings
from vt_fast.backends.triton.bags import NO_BAGS, clear_without_bags, cut_bags, piece_of
from vt_fast.backends.triton.compiling import checked
from vt_fast.backends.triton.primitives import (
    UNSPECIALIZED,
    first_walk,
    indices,
    next_tile,
    own_chunk,
    product,
    program_of,
    rounded_weights,
    second_walk,
    weighted_product,
    zero_sums,
)
from vt_fast.backends.triton.schedule import Cut, attempt, config, cut, cut_across, launch
from vt_fast.backends.triton.settings import KEEP, Problem, Setting, ceil_div
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
from vt_fast.layout import bag_bounds, channel_count, empty_map_like, pixel_count


@checked
@triton.jit(do_not_specialize=UNSPECIALIZED)
def project_forward(x, keys, values, token_bias, scores, residual, y, bags, pixels, width, cfg: tl.constexpr):
    """Grid: tiles of pixels x B.

    keys (B?, HEADS * TOKENS, CHANNELS) or, BLOCK_KEYS, (.., CHANNELS / HEADS), values (B?, TOKENS,
    OUT_CHANNELS) or, SUMMED, (B?, HEADS * TOKENS, OUT_CHANNELS), token_bias (B?, HEADS * TOKENS).
    scores, if any, (B, HEADS * TOKENS, pixels). KEEP: the map's tile stays on the chip until it is added as
    the residual, which it must be. With bags tiles are pieces, and all bags are one sample of the maps.
    """
    TILE: tl.constexpr = cfg.TILE
    SPREADING: tl.constexpr = cfg.SPREADING  # Triton 3.6 passes no text of a tuple
    ROWS: tl.constexpr = cfg.HEADS_PADDED * cfg.TOKENS_PADDED
    pixels *= cfg.PIXEL_ALIGN
    tiles_each = (pixels + TILE - 1) // TILE
    program = tl.program_id(0)
    sample = (program // tiles_each).to(tl.int64)
    plane = sample
    if bags.bag is not None:
        plane = tl.zeros((), tl.int64)
        sample, start, stop = piece_of(bags, program)
    key = 0
    if cfg.HAS_ROWS:
        key = keys.data + sample * keys.batch
    value = values.data + sample * values.batch
    tokens, bias = token_rows(token_bias, sample, cfg)
    if bags.bag is not None:
        n = start + indices(TILE, cfg)
        ok = n < stop
    else:
        n = program % tiles_each * TILE + indices(TILE, cfg)
        ok = n < pixels
    tile = maps.tile_of(x, plane, 0, n, width, cfg)
    logits = tl.zeros((TILE, ROWS), cfg.ACC)
    kept = ()
    if cfg.HAS_ROWS:
        logits, kept = first_walk(add_scores, logits, (tile, ok, key, tokens), cfg)
    if scores is not None:
        logits += load_scores(scores, plane, tokens, n, ok, pixels, cfg)
    weights = weigh(logits, bias, SPREADING, cfg)
    weights = rounded_weights(weights, x.data.dtype.element_ty, cfg)
    base = maps.tile_of(residual, plane, 0, n, width, cfg)
    to = maps.tile_of(y, plane, 0, n, width, cfg)
    second_walk(store_y, (), (tile, base, to, kept, ok, value, tokens, weights), 0, cfg)


@triton.jit
def load_scores(scores, plane, tokens, n, ok, pixels, cfg: tl.constexpr):
    """[pixels, rows] of scores; 0 where a row or a pixel does not count."""
    at = maps.score_places(scores, plane * (cfg.HEADS * cfg.TOKENS), tokens.row, n, pixels)
    return tl.load(at, mask=ok[:, None] & tokens.counts[None, :], other=0.0).to(cfg.ACC)


@triton.jit
def add_scores(scores, operands, i, k, cfg: tl.constexpr):
    """The first walk's step."""
    tile, ok, keys, tokens = operands
    chunk = maps.load_chunk(tile, k, ok, cfg.CHANNELS, cfg.RAGGED)
    return product(chunk, load_keys(keys, tokens, k, cfg.RAGGED, cfg), scores, cfg), (chunk,)


@triton.jit
def store_y(sums, operands, i, k, cfg: tl.constexpr):
    """The second walk's step."""
    TILE: tl.constexpr = cfg.TILE
    CHUNK: tl.constexpr = cfg.CHUNK
    tile, base, to, kept, ok, values, tokens, weights = operands
    value = load_values(values, tokens, k, cfg.OUT_RAGGED, cfg)
    out = weighted_product(weights, tl.trans(value), tl.zeros((TILE, CHUNK), cfg.ACC), cfg)
    if cfg.RESIDUAL == "input":
        out += maps.chunk_again(kept, i, 0, tile, k, ok, cfg.CHANNELS, cfg.RAGGED, cfg).to(cfg.ACC)
    if cfg.RESIDUAL == "map":
        out += maps.load_chunk(base, k, ok, cfg.OUT_CHANNELS, cfg.OUT_RAGGED).to(cfg.ACC)
    maps.store_chunk(to, k, ok, out, cfg.OUT_CHANNELS, cfg.OUT_RAGGED)
    return ()


def bounds_that_matter(call: Project | ProjectBackward) -> Tensor | None:
    """The offsets, or None where bags share all operands: then they are like one sample."""
    if call.offsets is None:
        return None
    if call.offsets.device.type == "cpu":
        bag_bounds(call.offsets, pixel_count(call.x))
    rows = (call.keys, call.values, None if call.token_bias is None else call.token_bias[..., None])
    return call.offsets if any(each is not None and each.dim() == 3 for each in rows) else None


def forward(call: Project) -> Tensor:
    """The map."""
    x, dtype = maps.batched(call.x), call.x.dtype
    pixels, channels = pixel_count(x), channel_count(x)
    out_channels = call.values.shape[-1]
    widest = max(channels, out_channels)
    y = empty_map_like(call.x, out_channels)
    residual = None if call.residual is None else maps.batched(call.residual)
    scores = None if call.scores is None else call.scores.contiguous()
    heads, offsets = Heads.of(call), bounds_that_matter(call)
    wide = settings.wide_weights(dtype, call.normalize == "tokens")
    clear_without_bags(offsets, y)
    placed = maps.place(pixels, widest, x, residual, maps.batched(y))
    x_map, residual_map, y_map = placed.maps
    keys, values, token_bias = maps.rows(call.keys), maps.rows(call.values), maps.bias_rows(call.token_bias)

    def run(setting: Setting) -> None:
        tiles = ceil_div(pixels, setting.tile)
        chunks = ceil_div(out_channels, setting.chunk)
        pieces = None if offsets is None else cut_bags(offsets, pixels, setting.tile)
        keep = call.residual_is_input and setting.form == KEEP and call.keys is not None
        own, loops = (chunks, 1) if keep else (1, chunks)
        made = Cut(own, loops, 1, keep, 1, setting.tile, True)
        cfg = config(
            setting, made, placed, dtype, channels=channels, out_channels=out_channels, together=False,
            **heads._asdict(), RESIDUAL=residual_kind(call.residual, call.residual_is_input),
            SPREADING=call.normalize or "none", PARTIAL=scores is not None, HAS_ROWS=call.keys is not None,
            WIDE_WEIGHTS=wide,
        )  # fmt: skip
        launch(
            project_forward, (tiles * x.shape[0] if pieces is None else pieces.count,), x_map, keys, values,
            token_bias, scores, residual_map, y_map, NO_BAGS if pieces is None else pieces.bags,
            placed.pixels, placed.width, cfg=cfg, num_warps=setting.warps, num_stages=setting.stages,
        )  # fmt: skip

    kind = settings.kind(dtype, wide)
    attempt(Problem("project_forward", kind, placed.layout, widest, heads.padded, pixels), call, run)
    return y


@checked
@triton.jit(do_not_specialize=UNSPECIALIZED)
def project_backward(
    grad,
    x,
    keys,
    values,
    token_bias,
    scores,
    dx,
    parts,
    dscores,
    bags,
    pixels,
    width,
    tiles_each,
    splits,
    per_split,
    cfg: tl.constexpr,
):
    """One pass over the map and its result's gradient. Grid: BLOCKS of both maps' channels x splits x B.

    With bags splits are pieces, and all bags are one sample of the maps. ACROSS, where these share the keys
    and values whose gradients are wanted, splits are ``per_split`` of ``tiles_each`` pieces of a tile.
    dtoken_bias is of each piece with BIAS_EACH.
    """
    TILE: tl.constexpr = cfg.TILE
    SPREADING: tl.constexpr = cfg.SPREADING  # Triton 3.6 passes no text of a tuple
    ROWS: tl.constexpr = cfg.HEADS_PADDED * cfg.TOKENS_PADDED
    OWN: tl.constexpr = cfg.OWN
    block, split, sample, part = program_of(splits, cfg)
    plane = sample
    if bags.bag is not None and not cfg.ACROSS:
        sample, begin, end = piece_of(bags, split)
    only_key = 0
    if cfg.HAS_ROWS:
        only_key = keys.data + sample * keys.batch
    only_value = values.data + sample * values.batch
    tokens, only_bias = token_rows(token_bias, sample, cfg)
    pixels *= cfg.PIXEL_ALIGN

    dkeys = zero_sums(ROWS, cfg)
    dvalues = zero_sums(ROWS, cfg)
    dtoken_bias = tl.zeros((ROWS,), cfg.ACC)
    if bags.bag is None or cfg.ACROSS:
        begin = split * per_split
        end = tl.minimum(tiles_each if cfg.ACROSS else pixels, begin + per_split)
    for place in tl.range(begin, end, 1 if cfg.ACROSS else TILE):
        if cfg.ACROSS:
            bag, start, stop = piece_of(bags, place)
            key = 0
            if cfg.HAS_ROWS:
                key = keys.data + bag * keys.batch
            value = values.data + bag * values.batch
            rows, bias = token_rows(token_bias, bag, cfg)
        else:
            start = place
            stop = end
            key = only_key
            value = only_value
            rows = tokens
            bias = only_bias
        n = start + indices(TILE, cfg)
        ok = n < stop
        tile = maps.tile_of(x, plane, 0, n, width, cfg)
        arriving = maps.tile_of(grad, plane, 0, n, width, cfg)
        to = maps.tile_of(dx, plane, 0, n, width, cfg)
        zeros = tl.zeros((TILE, ROWS), cfg.ACC)
        both, kept = first_walk(
            add_scores_and_grads, (zeros, zeros), (tile, arriving, ok, key, value, rows), cfg
        )
        logits, grads = both
        if scores is not None:
            logits += load_scores(scores, plane, rows, n, ok, pixels, cfg)
        weights = weigh(logits, bias, SPREADING, cfg)
        inner = weigh_backward(weights, grads, bias, SPREADING, cfg)
        weights = tl.where(ok[:, None], weights, 0.0)
        inner = tl.where(ok[:, None], inner, 0.0)
        if parts.dtoken_bias is not None:
            if not cfg.BIAS_EACH:
                dtoken_bias += tl.sum(inner, 0)
            elif block == 0:
                store_dtoken_bias(
                    parts.dtoken_bias, place + tl.zeros((), tl.int64), rows, tl.sum(inner, 0), cfg
                )
        if dscores is not None:
            if block == 0:
                to_scores = maps.score_places(dscores, plane * (cfg.HEADS * cfg.TOKENS), rows.row, n, pixels)
                there = ok[:, None] & rows.exists[None, :]
                tl.store(to_scores, inner.to(dscores.dtype.element_ty), mask=there)
        weights = rounded_weights(weights, x.data.dtype.element_ty, cfg)
        inner = rounded_weights(inner, x.data.dtype.element_ty, cfg)
        slot = (part, place > begin)
        dvalues = second_walk(
            store_dx_and_add_dvalues, dvalues,
            (arriving, to, kept, ok, key, rows, weights, inner, parts, slot), block, cfg,
        )  # fmt: skip
        if parts.dkeys is not None:
            # In a loop of its own, which needs fewer registers.
            dkeys = second_walk(add_dkeys, dkeys, (tile, kept, ok, rows, inner, parts, slot), block, cfg)
        next_tile(cfg)

    if cfg.LOOPS == 1:
        for i in tl.static_range(OWN):
            k = own_chunk(block, i, cfg)
            if parts.dkeys is not None:
                store_dkeys(parts.dkeys, part, tokens, k, dkeys[i], False, True, cfg)
            if parts.dvalues is not None:
                store_dvalues(parts.dvalues, part, tokens, k, dvalues[i], False, True, cfg)
    if parts.dtoken_bias is not None and not cfg.BIAS_EACH:
        if block == 0:
            store_dtoken_bias(parts.dtoken_bias, part, tokens, dtoken_bias, cfg)


@triton.jit
def add_scores_and_grads(sums, operands, i, k, cfg: tl.constexpr):
    """The first walk's step: products of x with the keys, and of the arriving gradient with the values."""
    scores, grads = sums
    tile, arriving, ok, keys, values, tokens = operands
    if cfg.HAS_ROWS:
        chunk = maps.load_chunk(tile, k, ok, cfg.CHANNELS, cfg.RAGGED)
        scores = product(chunk, load_keys(keys, tokens, k, cfg.RAGGED, cfg), scores, cfg)
    arrived = maps.load_chunk(arriving, k, ok, cfg.OUT_CHANNELS, cfg.OUT_RAGGED)
    if not cfg.HAS_ROWS:
        chunk = arrived
    grads = product(arrived, load_values(values, tokens, k, cfg.OUT_RAGGED, cfg), grads, cfg)
    return (scores, grads), (chunk, arrived)


@triton.jit
def store_dx_and_add_dvalues(sums, operands, i, k, cfg: tl.constexpr):
    """A second walk's step: dx = dS keys [+ G], dvalues = G^T P."""
    TILE: tl.constexpr = cfg.TILE
    CHUNK: tl.constexpr = cfg.CHUNK
    arriving, to, kept, ok, keys, tokens, weights, inner, parts, slot = operands
    if parts.dvalues is not None or cfg.RESIDUAL == "input":
        arrived = maps.chunk_again(kept, i, 1, arriving, k, ok, cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED, cfg)
    if cfg.NEEDS_X:
        out = tl.zeros((TILE, CHUNK), cfg.ACC)
        if cfg.HAS_ROWS:
            key = load_keys(keys, tokens, k, cfg.OWN_RAGGED, cfg)
            out = weighted_product(inner, tl.trans(key), out, cfg)
        if cfg.RESIDUAL == "input":
            out += arrived.to(cfg.ACC)
        maps.store_chunk(to, k, ok, out, cfg.CHANNELS, cfg.OWN_RAGGED)
    if parts.dvalues is None:
        return (sums[i],)
    else:
        added = weighted_product(tl.trans(arrived), weights, sums[i], cfg)
        return leave_dvalues(parts, slot, tokens, k, added, cfg)


@triton.jit
def add_dkeys(sums, operands, i, k, cfg: tl.constexpr):
    """A second walk's step: dkeys = dS^T x."""
    tile, kept, ok, tokens, inner, parts, slot = operands
    chunk = maps.chunk_again(kept, i, 0, tile, k, ok, cfg.CHANNELS, cfg.OWN_RAGGED, cfg)
    added = weighted_product(tl.trans(chunk), inner, sums[i], cfg)
    return leave_dkeys(parts, slot, tokens, k, added, cfg)


def backward(call: ProjectBackward) -> ProjectGradients:
    """The gradients that are needed."""
    x, dtype = maps.batched(call.x), call.x.dtype
    needs_x, needs_keys, needs_values = call.needs[:3]
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    out_channels = call.values.shape[-1]
    widest = max(channels, out_channels)
    heads, offsets = Heads.of(call), bounds_that_matter(call)
    wide = settings.wide_weights(dtype, call.normalize == "tokens")
    dx = torch.empty_like(call.x) if needs_x else None
    if dx is not None and call.keys is None and not call.residual_is_input:
        dx.zero_()  # x has a shape alone
        needs_x = False
    scores = None if call.scores is None else call.scores.contiguous()
    dscores = torch.empty_like(scores) if scores is not None and call.needs[4] else None
    clear_without_bags(offsets, dx, dscores)
    arriving = maps.batched(call.grad_map.to(dtype))
    placed = maps.place(pixels, widest, x, arriving, None if dx is None else maps.batched(dx))
    x_map, grad_map, dx_map = placed.maps
    keys, values, token_bias = maps.rows(call.keys), maps.rows(call.values), maps.bias_rows(call.token_bias)
    wanted = [call.keys if needs_keys else None, call.values if needs_values else None]
    ranks = {each.dim() for each in wanted if each is not None}
    # Bags that share these leave no sums of their own. Otherwise one of these has a gradient of each bag, and
    # what pieces leave of the other one takes memory of that order.
    across = offsets is not None and offsets.shape[0] > 1 and ranks == {2}

    def run(setting: Setting) -> list[Tensor | None]:
        left = numbers_each(call.keys) * needs_keys + numbers_each(call.values) * needs_values
        made = cut(setting, x, max(pixels, 1), widest, batch, 4 * batch * left)
        pieces = None if offsets is None else cut_bags(offsets, pixels, setting.tile if across else made.each)
        if pieces is not None and across:
            made = cut_across(setting, x, pieces.count, widest, 1, 4 * left)
        splits = made.parts if pieces is None or across else pieces.count
        operands = [call.keys, call.values, call.token_bias, None]
        small = SmallGradients(made, x, operands, [*call.needs[1:4], False], pieces, across=across)
        cfg = config(
            setting, made, placed, dtype, channels=channels, out_channels=out_channels, **heads._asdict(),
            RESIDUAL="input" if call.residual_is_input else "none", NEEDS_X=needs_x,
            SPREADING=call.normalize or "none", PARTIAL=scores is not None, HAS_ROWS=call.keys is not None,
            WIDE_WEIGHTS=wide, ACROSS=across,
            BIAS_EACH=across and call.token_bias is not None and call.token_bias.dim() == 2,
        )  # fmt: skip
        launch(
            project_backward, (made.blocks * splits * batch,), grad_map, x_map, keys, values, token_bias,
            scores, dx_map, small.parts, dscores, NO_BAGS if pieces is None else pieces.bags, placed.pixels,
            placed.width, pieces.count if pieces is not None and across else None, splits, made.each, cfg=cfg,
            num_warps=setting.warps, num_stages=setting.stages,
        )  # fmt: skip
        return small.summed()

    kind = settings.kind(dtype, wide)
    problem = Problem("project_backward", kind, placed.layout, widest, heads.padded, pixels)
    dkeys, dvalues, dtoken_bias, _ = attempt(problem, call, run)
    if dscores is not None and call.scores is not None:
        dscores = dscores.view(call.scores.shape)
    return ProjectGradients(x=dx, keys=dkeys, values=dvalues, token_bias=dtoken_bias, scores=dscores)

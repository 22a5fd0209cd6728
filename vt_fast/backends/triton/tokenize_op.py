"""tokenize: the kernel and how it is launched."""

from typing import NamedTuple, cast

import triton
import triton.language as tl
from torch import Tensor

from vt_fast.backends.contract import Tokenize, TokenizeBackward, row_count, sees_block
from vt_fast.backends.triton import maps, settings
from vt_fast.backends.triton.bags import NO_BAGS, cut_bags, piece_of
from vt_fast.backends.triton.compiling import checked
from vt_fast.backends.triton.pixel_softmax import (
    Pooled,
    add_moments,
    inverse_deviation,
    load_extra_values,
    load_token_bias,
    no_statistics,
    normalised,
    of_normalised,
    plain_weights,
    query_rows,
    rescaled,
    softmax_over_pixels,
    store_extra,
    store_pooled,
    store_statistics,
    taking_part,
)
from vt_fast.backends.triton.primitives import (
    UNSPECIALIZED,
    add_previous,
    first_walk,
    indices,
    load_rows,
    next_tile,
    own_chunk,
    product,
    program_of,
    second_walk,
    weighted_product,
    zero_sums,
)
from vt_fast.backends.triton.schedule import (
    attempt,
    config,
    cut,
    launch,
)
from vt_fast.backends.triton.settings import Problem, Setting, power_of_two
from vt_fast.layout import channel_count, pixel_count
from vt_fast.precision import compute_dtype


@checked
@triton.jit(do_not_specialize=UNSPECIALIZED)
def tokenize_forward(
    x,
    values,
    queries,
    query_sums,
    token_bias,
    scores,
    per_pixel,
    bags,
    epsilon,
    out,
    pixels,
    width,
    splits,
    per_split,
    cfg: tl.constexpr,
):
    """Grid: BLOCKS of channels x splits x (B * heads).

    A head is a problem of its own, of CHANNELS channels and QUERIES queries. It pools x, or OUT_CHANNELS of
    another map, ``values``. DIRECT (one split): tokens (B, QUERIES, HEADS * OUT_CHANNELS + EXTRA) and lse or
    mass (B, HEADS * QUERIES). Otherwise the parts' tokens are (B * heads, splits, QUERIES, OUT_CHANNELS +
    EXTRA), their statistics (B * heads, splits, QUERIES), and seen (B * heads, splits). scores, if any,
    (B, HEADS * QUERIES, pixels). With NORM, query_sums are sums of the queries' numbers, and epsilon is added
    to variances. With bags splits are pieces, and all of them are one sample of the maps.
    """
    QUERIES: tl.constexpr = cfg.QUERIES_PADDED
    TILE: tl.constexpr = cfg.TILE
    EXTRA: tl.constexpr = cfg.EXTRA_PADDED
    CHUNKS: tl.constexpr = cfg.CHUNKS
    OWN: tl.constexpr = cfg.OWN
    WIDTH: tl.constexpr = cfg.OUT_CHANNELS * (cfg.HEADS if cfg.DIRECT else 1) + cfg.EXTRA
    block, split, item, part = program_of(splits, cfg)
    sample = item // cfg.HEADS
    head = item % cfg.HEADS
    plane = sample
    if bags.bag is not None:
        sample, begin, end = piece_of(bags, split)
    c = indices(cfg.CHUNK, cfg)
    q, exists = query_rows(cfg)
    query_ok = exists
    if cfg.POOLING != "pixels" or token_bias.data is not None:
        row_bias = load_token_bias(token_bias, sample, head, q, exists, cfg)
        query_ok = row_bias != -float("inf")
    query = 0
    if cfg.HAS_ROWS:
        query = queries.data + (sample * queries.batch + head * (cfg.QUERIES * cfg.CHANNELS))
    if cfg.DIRECT:
        tokens = out.tokens + (sample * (cfg.QUERIES * WIDTH) + head * cfg.OUT_CHANNELS)
    else:
        tokens = out.tokens + part * (cfg.QUERIES * WIDTH)
    to = tokens + q[None, :] * WIDTH
    pixels *= cfg.PIXEL_ALIGN

    held = ()
    if cfg.KEEP:
        for i in tl.static_range(CHUNKS):
            k = i * cfg.CHUNK + c
            held = held + (load_rows(query, q, cfg.CHANNELS, k, query_ok, k < cfg.CHANNELS, cfg.RAGGED),)
    sums = zero_sums(QUERIES, cfg)
    if cfg.EXTRA > 0:
        extra_sums = tl.zeros((EXTRA, QUERIES), cfg.ACC)
    statistics = no_statistics(cfg)
    if bags.bag is None:
        begin = split * per_split
        end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n, _inside, ok, bias = taking_part(per_pixel, start, end, plane * pixels, cfg)
        tile = maps.tile_of(x, plane, head * cfg.CHANNELS, n, width, cfg)
        pooled = tile
        if values.data is not None:
            pooled = maps.tile_of(values, plane, head * cfg.OUT_CHANNELS, n, width, cfg)
        logits = tl.zeros((TILE, QUERIES), cfg.ACC)
        kept = ()
        norm = ()
        if cfg.NORM:
            blank = tl.zeros((TILE,), cfg.ACC)
            reading = (tile, ok, query, q, query_ok, held)
            found, kept = first_walk(add_logits_and_moments, (logits, blank, blank), reading, cfg)
            logits, mean, squares = found
            inverse = inverse_deviation(squares, epsilon, cfg)
            norm = (mean, inverse)
            if cfg.HAS_ROWS:
                at = query_sums.data + sample * query_sums.batch + q
                row_sums = tl.load(at, mask=query_ok, other=0.0)
                logits = of_normalised(logits, mean, inverse, row_sums)
        elif cfg.HAS_ROWS:
            logits, kept = first_walk(add_logits, logits, (tile, ok, query, q, query_ok, held), cfg)
        if scores is not None:
            at = maps.score_places(scores, (plane * cfg.HEADS + head) * cfg.QUERIES, q, n, pixels)
            logits += tl.load(at, mask=ok[:, None] & query_ok[None, :], other=0.0).to(cfg.ACC)
        if per_pixel.bias is not None:
            logits += bias[:, None]
        if cfg.POOLING == "pixels":
            if token_bias.data is not None:
                logits = tl.where(query_ok[None, :], logits + row_bias[None, :], -float("inf"))
            weights, scale, statistics = softmax_over_pixels(
                logits, ok, statistics, x.data.dtype.element_ty, cfg.LIMIT
            )
        else:
            weights, statistics = plain_weights(
                logits, row_bias, ok, statistics, x.data.dtype.element_ty, cfg
            )
            scale = tl.full((QUERIES,), 1.0, cfg.ACC)
        pooling = (pooled, ok, kept, weights, scale, norm, to, exists, start > begin, statistics)
        sums = second_walk(pool_chunk, sums, pooling, block, cfg)
        next_tile(cfg)
        if cfg.EXTRA > 0:
            extra = load_extra_values(per_pixel, n, ok, cfg)
            extra_sums = weighted_product(tl.trans(extra), weights, extra_sums * scale[None, :], cfg)

    if cfg.LOOPS == 1:
        for i in tl.static_range(OWN):
            k = own_chunk(block, i, cfg)
            there = (k < cfg.OUT_CHANNELS)[:, None] & exists[None, :]
            store_pooled(to + k[:, None], sums[i], there, statistics, cfg)
    if block == 0:
        if cfg.EXTRA > 0:
            store_extra(to + cfg.OUT_CHANNELS, extra_sums, exists, statistics, cfg)
        store_statistics(out, item, part, statistics, cfg)


@triton.jit
def add_logits(logits, operands, i, k, cfg: tl.constexpr):
    """The first walk's step. The queries of all chunks are held where KEEP keeps those."""
    tile, ok, query, q, query_ok, held = operands
    chunk = maps.load_chunk(tile, k, ok, cfg.CHANNELS, cfg.RAGGED)
    if cfg.KEEP:
        row = held[i]
    else:
        row = load_rows(query, q, cfg.CHANNELS, k, query_ok, k < cfg.CHANNELS, cfg.RAGGED)
    return product(chunk, row, logits, cfg), (chunk,)


@triton.jit
def add_logits_and_moments(sums, operands, i, k, cfg: tl.constexpr):
    """The same, with the pixels' moments."""
    logits, mean, squares = sums
    tile, ok, _query, _q, _query_ok, _held = operands
    if cfg.HAS_ROWS:
        logits, chunks = add_logits(logits, operands, i, k, cfg)
        chunk = chunks[0]
    else:
        chunk = maps.load_chunk(tile, k, ok, cfg.CHANNELS, cfg.RAGGED)
    mean, squares = add_moments(mean, squares, chunk, i, k, cfg)
    return (logits, mean, squares), (chunk,)


@triton.jit
def pool_chunk(sums, operands, i, k, cfg: tl.constexpr):
    """The second walk's step."""
    tile, ok, kept, weights, scale, norm, to, exists, follows, statistics = operands
    chunk = maps.chunk_again(kept, i, 0, tile, k, ok, cfg.OUT_CHANNELS, cfg.OUT_OWN_RAGGED, cfg)
    if cfg.NORM:
        chunk = normalised(chunk, norm[0], norm[1]).to(weights.dtype)
    if cfg.LOOPS > 1:
        added = weighted_product(tl.trans(chunk), weights, tl.zeros_like(sums[i]), cfg)
        there = (k < cfg.OUT_CHANNELS)[:, None] & exists[None, :]
        added = add_previous(to + k[:, None], there, added, follows, scale[None, :], cfg.ONE_TILE)
        store_pooled(to + k[:, None], added, there, statistics, cfg)
        return ()
    else:
        return (weighted_product(tl.trans(chunk), weights, rescaled(sums[i], scale, cfg), cfg),)


def separate_heads(call: Tokenize | TokenizeBackward) -> int:
    """Heads that are problems of their own, with a block of the channels each."""
    return call.num_heads if sees_block(call.queries, channel_count(call.x), call.num_heads) else 1


def pooled_channels(call: Tokenize | TokenizeBackward) -> int:
    """The channels that a head pools, as its problem."""
    return channel_count(call.x if call.values is None else call.values) // separate_heads(call)


def may_be_partial(call: Tokenize | TokenizeBackward) -> bool:
    """Whether logits of valid pixels may be -inf."""
    return call.token_bias is not None or call.scores is not None


def sums_of_rows(call: Tokenize | TokenizeBackward) -> maps.Rows:
    """The sum of each query's numbers, which folds the mean of normalised pixels."""
    if call.layer_norm_eps is None or call.queries is None:
        return maps.bias_rows(None)
    return maps.bias_rows(call.queries.to(compute_dtype(call.x.dtype)).sum(-1))


def wide_call(call: Tokenize) -> Tokenize:
    """With rows of full width that are 0 beyond their block.

    A normalised pixel's gradient goes through all its channels, so that no head can be a problem of its own.
    """
    queries = cast(Tensor, call.queries)
    return call._replace(queries=wide_rows(queries, call.num_heads), num_heads=1)


def wide_rows(rows: Tensor, num_heads: int) -> Tensor:
    """(.., num_heads * L, D) as (.., num_heads * L, num_heads * D), and 0 elsewhere."""
    blocks = rows.unflatten(-2, (num_heads, -1))
    wide = rows.new_zeros((*blocks.shape[:-1], num_heads, rows.shape[-1]))
    wide.diagonal(dim1=-4, dim2=-2).copy_(blocks.movedim(-3, -1))
    return wide.flatten(-2).flatten(-3, -2)


def narrow_rows(wide: Tensor, num_heads: int) -> Tensor:
    """The blocks of such rows."""
    blocks = wide.unflatten(-1, (num_heads, -1)).unflatten(-3, (num_heads, -1))
    narrow: Tensor = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3).flatten(-3, -2)
    return narrow.contiguous()


def narrow_tokens(wide: Tensor, num_heads: int) -> Tensor:
    """Tokens (B, L, C) of each head's own block, of those of full width."""
    blocks: Tensor = narrow_rows(wide, num_heads).unflatten(1, (num_heads, -1))
    return blocks.transpose(1, 2).flatten(2)


def wide_tokens(tokens: Tensor, num_heads: int) -> Tensor:
    """The other way round, with 0 elsewhere."""
    return wide_rows(tokens.unflatten(2, (num_heads, -1)).transpose(1, 2).flatten(1, 2), num_heads)


class Queries(NamedTuple):
    """The rows of a program: GROUPS heads of TOKENS each, whose padded numbers are HEADS_PADDED and so on."""

    QUERIES: int
    QUERIES_PADDED: int
    GROUPS: int
    HEADS_PADDED: int
    TOKENS: int
    TOKENS_PADDED: int

    @classmethod
    def of(cls, call: Tokenize | TokenizeBackward) -> "Queries":
        """Padded to at least 16, as products take them."""
        num_heads = separate_heads(call)
        count = row_count(call.queries, call.scores, call.offsets) // num_heads
        # Heads matter to a softmax over tokens alone.
        groups = call.num_heads // num_heads if call.normalize == "tokens" else 1
        tokens, groups_padded = count // groups, power_of_two(groups)
        tokens_padded = power_of_two(tokens, max(1, 16 // groups_padded))
        return cls(count, groups_padded * tokens_padded, groups, groups_padded, tokens, tokens_padded)


def forward(call: Tokenize) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, C + P), rounded unless ``keep_exact``, and lse or mass (B, num_heads * L)."""
    if call.layer_norm_eps is not None and separate_heads(call) > 1:
        tokens, stats = forward(wide_call(call))
        return narrow_tokens(tokens, call.num_heads), stats
    x, num_heads, dtype = maps.batched(call.x), separate_heads(call), call.x.dtype
    rows, pixels = Queries.of(call), pixel_count(x)
    count, channels, out_channels = rows.QUERIES, channel_count(x) // num_heads, pooled_channels(call)
    pooling, partial = call.normalize or "none", may_be_partial(call)
    wide = settings.wide_weights(dtype, pooling == "pixels")
    extra = 0 if call.extra_values is None else call.extra_values.shape[1]
    values = None if call.values is None else maps.batched(call.values)
    scores = None if call.scores is None else call.scores.contiguous()
    placed = maps.place(pixels, max(channels, out_channels) * num_heads, x, values)
    token_bias = maps.bias_rows(call.token_bias)
    queries, per_pixel = (
        maps.rows(call.queries),
        maps.pixel_operands(call.mask, call.pixel_bias, call.extra_values),
    )

    query_sums = sums_of_rows(call)

    def run(setting: Setting) -> tuple[Tensor, Tensor]:
        items = x.shape[0] * num_heads
        left = 4 * items * count * (out_channels + extra)
        made = cut(setting, x, max(pixels, 1), out_channels, items, left)
        if values is not None or call.queries is None:
            made = made._replace(keep=False)  # a tile of x is read once anyway
        pieces = None if call.offsets is None else cut_bags(call.offsets, pixels, made.each)
        splits = made.parts if pieces is None else pieces.count
        pooled = Pooled(
            x,
            num_heads,
            count,
            out_channels,
            extra,
            made,
            exact=call.keep_exact,
            pooling=pooling,
            partial=partial,
            pieces=pieces,
        )
        cfg = config(
            setting, made, placed, dtype, channels=channels, out_channels=out_channels, together=False,
            HEADS=num_heads, **rows._asdict(), EXTRA=extra, EXTRA_PADDED=power_of_two(extra, 16),
            DIRECT=made.direct and pieces is None, POOLING=pooling, PARTIAL=partial,
            HAS_ROWS=call.queries is not None, NORM=call.layer_norm_eps is not None,
            WIDE_WEIGHTS=wide,
        )  # fmt: skip
        launch(
            tokenize_forward, (made.blocks * splits * items,), *placed.maps, queries, query_sums, token_bias,
            scores, per_pixel, NO_BAGS if pieces is None else pieces.bags, call.layer_norm_eps,
            pooled.results, placed.pixels, placed.width, splits, made.each, cfg=cfg, num_warps=setting.warps,
            num_stages=setting.stages,
        )  # fmt: skip
        return pooled.combined(cfg.LIMIT)

    kind, padded = settings.kind(dtype, wide), rows.QUERIES_PADDED
    problem = Problem("tokenize_forward", kind, placed.layout, out_channels, padded, pixels)
    return attempt(problem, call, run)

"""project_tokenize: the kernel and how it is launched; and the op as project, then tokenize.

The map Y = R + P V (R: the residual) is not needed for its tokens. Its logits are R W^T + P (V W^T), and
pooled with the weights A it is A^T R + (A^T P) V. So V meets the few queries before the pixels, and the few
A^T P after them.
"""

import triton
import triton.language as tl
from torch import Tensor

from vt_fast.backends.contract import Project, ProjectTokenize, ProjectTokenizeBackward, Tokenize
from vt_fast.backends.triton import maps, project_op, settings, tokenize_op
from vt_fast.backends.triton.compiling import checked
from vt_fast.backends.triton.pixel_softmax import (
    Pooled,
    load_extra_values,
    no_statistics,
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
    small_logits,
    two_of,
    zero_sums,
)
from vt_fast.backends.triton.schedule import attempt, config, cut, launch
from vt_fast.backends.triton.settings import Problem, Setting, power_of_two
from vt_fast.backends.triton.token_softmax import (
    Heads,
    load_keys,
    load_values,
    residual_kind,
    token_rows,
    weigh,
)
from vt_fast.layout import channel_count, empty_map_like, pixel_count


@triton.jit
def mix(values, tokens, others, WIDTH: tl.constexpr, cfg: tl.constexpr):
    """V times the transpose of others (QUERIES, WIDTH), of which the first OUT_CHANNELS columns count."""
    QUERIES: tl.constexpr = cfg.QUERIES_PADDED
    ROWS: tl.constexpr = cfg.HEADS_PADDED * cfg.TOKENS_PADDED
    RAGGED: tl.constexpr = cfg.OUT_CHANNELS % cfg.CHUNK != 0
    q = tl.arange(0, QUERIES)
    c = indices(cfg.CHUNK, cfg)
    sums = tl.zeros((ROWS, QUERIES), cfg.ACC)
    for m in tl.range((cfg.OUT_CHANNELS + cfg.CHUNK - 1) // cfg.CHUNK):
        k = m * cfg.CHUNK + c
        value = load_values(values, tokens, k, RAGGED, cfg)
        other = load_rows(others, q, WIDTH, k, q < cfg.QUERIES, k < cfg.OUT_CHANNELS, RAGGED)
        sums = product(tl.trans(value), other, sums, cfg)
    return sums


@triton.jit
def add_mixed(operand, few, onto, cfg: tl.constexpr):
    """onto [channels, columns] + operand [channels, rows] times the few [rows, columns], which are sums.

    An operand of 16 bits takes them as two numbers of its dtype, relative to each column's largest: what is
    left of the first one's rounding is the second.
    """
    if operand.dtype.primitive_bitwidth > 16:
        return product(operand, few, onto, cfg)
    else:
        top = tl.max(tl.abs(few), 0)
        few = tl.where(top[None, :] > 0, few / top[None, :], 0.0)
        first, second = two_of(few, operand.dtype)
        sums = tl.zeros((operand.shape[0], few.shape[1]), onto.dtype)
        sums = product(operand, second, sums, cfg)
        return onto + product(operand, first, sums, cfg) * top[None, :]


@triton.jit
def kept_rows(sums, cfg: tl.constexpr):
    """What sums of a tile are added to: those of the tiles before, unless these are in memory already."""
    if cfg.LOOPS > 1:
        return tl.zeros_like(sums)
    else:
        return sums


@triton.jit
def add_outer(left, right, onto, cfg: tl.constexpr):
    """onto [rows, queries] + left [pixels, rows] transposed times right [pixels, queries].

    Where right has more digits than left, it counts as two numbers of left's dtype.
    """
    if right.dtype.primitive_bitwidth > left.dtype.primitive_bitwidth:
        first, second = two_of(right, left.dtype)
        onto = add_outer_of_same(left, second, onto, cfg)
        return add_outer_of_same(left, first, onto, cfg)
    else:
        return add_outer_of_same(left, right, onto, cfg)


@triton.jit
def add_outer_of_same(left, right, onto, cfg: tl.constexpr):
    """The same for operands of one dtype.

    A product of few rows and columns over many pixels would have every warp take all pixels: here each
    takes some, and their sums are added up.
    """
    TILE: tl.constexpr = left.shape[0]
    EACH: tl.constexpr = 32
    if TILE <= EACH:
        return product(tl.trans(left), right, onto, cfg)
    else:
        groups = tl.permute(tl.reshape(left, (TILE // EACH, EACH, left.shape[1])), (0, 2, 1))
        others = tl.reshape(right, (TILE // EACH, EACH, right.shape[1]))
        sums = tl.zeros((TILE // EACH, left.shape[1], right.shape[1]), onto.dtype)
        return onto + tl.sum(product(groups, others, sums, cfg), 0)


@triton.jit
def load_queries(queries, channels, WIDTH: tl.constexpr, RAGGED: tl.constexpr, cfg: tl.constexpr):
    """[channels, queries] of queries, or of their tokens' gradients, which are WIDTH wide; else 0."""
    q = tl.arange(0, cfg.QUERIES_PADDED)
    return load_rows(queries, q, WIDTH, channels, q < cfg.QUERIES, channels < cfg.OUT_CHANNELS, RAGGED)


@checked
@triton.jit(do_not_specialize=UNSPECIALIZED)
def project_tokenize_forward(
    x,
    keys,
    values,
    token_bias,
    residual,
    queries,
    per_pixel,
    y,
    out,
    pixels,
    width,
    splits,
    per_split,
    cfg: tl.constexpr,
):
    """A tile is projected and tokenized while it is on the chip.

    Grid: BLOCKS of the result's channels x splits x B. DIRECT (one split): tokens
    (B, QUERIES, OUT_CHANNELS + EXTRA) and lse (B, QUERIES); otherwise parts as in tokenize_forward.
    STORE_MAP: the map is written too. KEEP: the residual's tile stays on the chip until it is pooled.
    """
    TILE: tl.constexpr = cfg.TILE
    SPREADING: tl.constexpr = cfg.SPREADING  # Triton 3.6 passes no text of a tuple
    OWN: tl.constexpr = cfg.OWN
    ROWS: tl.constexpr = cfg.HEADS_PADDED * cfg.TOKENS_PADDED
    QUERIES: tl.constexpr = cfg.QUERIES_PADDED
    EXTRA: tl.constexpr = cfg.EXTRA_PADDED
    WIDTH: tl.constexpr = cfg.OUT_CHANNELS + cfg.EXTRA
    block, split, sample, part = program_of(splits, cfg)
    q = tl.arange(0, QUERIES)
    query_ok = q < cfg.QUERIES
    key = keys.data + sample * keys.batch
    value = values.data + sample * values.batch
    query = queries.data + sample * queries.batch
    to_tokens = out.tokens + part * (cfg.QUERIES * WIDTH) + q[None, :] * WIDTH
    tokens, token_biases = token_rows(token_bias, sample, cfg)
    mixed = mix(value, tokens, query, cfg.OUT_CHANNELS, cfg)
    pixels *= cfg.PIXEL_ALIGN

    sums = zero_sums(QUERIES, cfg)
    if cfg.EXTRA > 0:
        extra_sums = tl.zeros((EXTRA, QUERIES), cfg.ACC)
    row_sums = tl.zeros((ROWS, QUERIES), cfg.ACC)
    statistics = no_statistics(cfg)
    begin = split * per_split
    end = tl.minimum(pixels, begin + per_split)
    for start in tl.range(begin, end, TILE):
        n, inside, ok, bias = taking_part(per_pixel, start, end, sample * pixels, cfg)
        # Where the map is written, masked pixels of it are too.
        wanted = inside if cfg.STORE_MAP else ok
        tile = maps.tile_of(x, sample, 0, n, width, cfg)
        base = maps.tile_of(residual, sample, 0, n, width, cfg)
        to = maps.tile_of(y, sample, 0, n, width, cfg)
        zeros = (tl.zeros((TILE, ROWS), cfg.ACC), tl.zeros((TILE, QUERIES), cfg.ACC))
        both, kept = first_walk(add_scores_and_logits, zeros, (tile, base, wanted, key, tokens, query), cfg)
        scores, logits = both
        projected = weigh(scores, token_biases, SPREADING, cfg)
        logits = small_logits(projected, mixed, logits, cfg)
        if per_pixel.bias is not None:
            logits += bias[:, None]
        weights, scale, statistics = softmax_over_pixels(
            logits, ok, statistics, x.data.dtype.element_ty, cfg.LIMIT
        )
        projected = projected.to(x.data.dtype.element_ty)
        tokenized = projected
        if cfg.MASKED:
            tokenized = tl.where(ok[:, None], projected, 0.0)
        row_sums = add_outer(tokenized, weights, kept_rows(row_sums, cfg) * scale[None, :], cfg)
        if cfg.EXTRA > 0:
            extra = load_extra_values(per_pixel, n, ok, cfg)
            extra_sums = product(tl.trans(extra), weights, extra_sums * scale[None, :], cfg)
        pooling = (weights, scale, row_sums, to_tokens, query_ok, start > begin, statistics)
        sums = second_walk(
            store_y_and_pool, sums,
            (tile, base, to, kept, wanted, inside, ok, value, tokens, projected, pooling), block, cfg,
        )  # fmt: skip
        next_tile(cfg)

    if cfg.LOOPS == 1:
        for i in tl.static_range(OWN):
            k = own_chunk(block, i, cfg)
            added = add_mixed(load_values(value, tokens, k, cfg.OUT_OWN_RAGGED, cfg), row_sums, sums[i], cfg)
            there = (k < cfg.OUT_CHANNELS)[:, None] & query_ok[None, :]
            store_pooled(to_tokens + k[:, None], added, there, statistics, cfg)
    if block == 0:
        if cfg.EXTRA > 0:
            store_extra(to_tokens + cfg.OUT_CHANNELS, extra_sums, query_ok, statistics, cfg)
        store_statistics(out, sample, part, statistics, cfg)


@triton.jit
def add_scores_and_logits(sums, operands, i, k, cfg: tl.constexpr):
    """The first walk's step: products of x with the keys, and of the residual with the queries."""
    scores, logits = sums
    tile, base, wanted, keys, tokens, queries = operands
    chunk = maps.load_chunk(tile, k, wanted, cfg.CHANNELS, cfg.RAGGED)
    scores = product(chunk, load_keys(keys, tokens, k, cfg.RAGGED, cfg), scores, cfg)
    if cfg.RESIDUAL == "map":
        chunk = maps.load_chunk(base, k, wanted, cfg.OUT_CHANNELS, cfg.OUT_RAGGED)
    if cfg.RESIDUAL != "none":
        query = load_queries(queries, k, cfg.OUT_CHANNELS, cfg.OUT_RAGGED, cfg)
        logits = product(chunk, query, logits, cfg)
    return (scores, logits), (chunk,)


@triton.jit
def store_y_and_pool(sums, operands, i, k, cfg: tl.constexpr):
    """The second walk's step."""
    TILE: tl.constexpr = cfg.TILE
    CHUNK: tl.constexpr = cfg.CHUNK
    RAGGED: tl.constexpr = cfg.OUT_OWN_RAGGED
    tile, base, to, kept, wanted, inside, ok, values, tokens, projected, pooling = operands
    weights, scale, row_sums, to_tokens, query_ok, follows, statistics = pooling
    if cfg.RESIDUAL == "input":
        chunk = maps.chunk_again(kept, i, 0, tile, k, wanted, cfg.CHANNELS, RAGGED, cfg)
    elif cfg.RESIDUAL == "map":
        chunk = maps.chunk_again(kept, i, 0, base, k, wanted, cfg.OUT_CHANNELS, RAGGED, cfg)
    if cfg.STORE_MAP:
        value = load_values(values, tokens, k, RAGGED, cfg)
        y = product(projected, tl.trans(value), tl.zeros((TILE, CHUNK), cfg.ACC), cfg)
        if cfg.RESIDUAL != "none":
            y += chunk.to(cfg.ACC)
        maps.store_chunk(to, k, inside, y, cfg.OUT_CHANNELS, RAGGED)
    added = sums[i] * scale[None, :]
    if cfg.RESIDUAL != "none":
        if cfg.STORE_MAP and cfg.MASKED:
            chunk = tl.where(ok[:, None], chunk, 0.0)
        added = product(tl.trans(chunk), weights, added, cfg)
    if cfg.LOOPS > 1:
        value = load_values(values, tokens, k, RAGGED, cfg)
        added = add_mixed(value, row_sums, added, cfg)
        there = (k < cfg.OUT_CHANNELS)[:, None] & query_ok[None, :]
        added = add_previous(to_tokens + k[:, None], there, added, follows, scale[None, :], cfg.ONE_TILE)
        store_pooled(to_tokens + k[:, None], added, there, statistics, cfg)
        return ()
    else:
        return (added,)


# Rows of keys, or queries, beyond which the kernel for both spills registers, or reads maps again and again.
_MOST_ROWS = 32


def too_many_rows(count: int) -> bool:
    """Whether so many rows, padded, are more than the kernel for both ops can hold."""
    return count > _MOST_ROWS


def forward(call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
    """The map (None unless wanted), its tokens (B, Lq, D + P) as tokenize's, and lse (B, Lq)."""
    x, dtype = call.x, call.x.dtype
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    out_channels = call.values.shape[-1]
    widest, count = max(channels, out_channels), call.queries.shape[-2]
    extra = 0 if call.extra_values is None else call.extra_values.shape[1]
    heads, padded = Heads.of(call), power_of_two(count, 16)
    if too_many_rows(max(padded, heads.padded)):
        return _one_after_the_other(call)
    y = empty_map_like(x, out_channels) if call.return_map else None
    placed = maps.place(pixels, widest, x, call.residual, y)
    x_map, residual_map, y_map = placed.maps
    keys, values, queries = maps.rows(call.keys), maps.rows(call.values), maps.rows(call.queries)
    token_bias = maps.bias_rows(call.token_bias)
    per_pixel = maps.pixel_operands(call.mask, call.pixel_bias, call.extra_values)

    def run(setting: Setting) -> tuple[Tensor, Tensor]:
        made = cut(setting, x, pixels, widest, batch, 4 * batch * count * (out_channels + extra))
        pooled = Pooled(x, 1, count, out_channels, extra, made, exact=call.keep_exact)
        cfg = config(
            setting, made, placed, dtype, channels=channels, out_channels=out_channels, **heads._asdict(),
            QUERIES=count, QUERIES_PADDED=padded, EXTRA=extra, EXTRA_PADDED=power_of_two(extra, 16),
            RESIDUAL=residual_kind(call.residual, call.residual_is_input),
            MASKED=call.mask is not None or call.pixel_bias is not None, STORE_MAP=call.return_map,
            DIRECT=made.direct,
        )  # fmt: skip
        launch(
            project_tokenize_forward, (made.blocks * made.parts * batch,), x_map, keys, values, token_bias,
            residual_map, queries, per_pixel, y_map, pooled.results, placed.pixels, placed.width, made.parts,
            made.each, cfg=cfg, num_warps=setting.warps, num_stages=setting.stages,
        )  # fmt: skip
        return pooled.combined(cfg.LIMIT)

    problem = Problem(
        "project_tokenize_forward",
        settings.kind(dtype),
        placed.layout,
        widest,
        max(padded, heads.padded),
        pixels,
    )
    return y, *attempt(problem, call, run)


def _one_after_the_other(call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
    """With the kernels of project and tokenize, where a program cannot hold the rows of both."""
    y = projected_map(call)
    made = Tokenize(y, call.queries, call.mask, call.pixel_bias, call.extra_values, 1, call.keep_exact)
    return (y if call.return_map else None, *tokenize_op.forward(made))


def projected_map(call: ProjectTokenize | ProjectTokenizeBackward) -> Tensor:
    """The map, written."""
    return project_op.forward(
        Project(
            call.x, call.keys, call.values, call.token_bias, call.residual, call.residual_is_input,
            call.num_heads,
        )
    )  # fmt: skip

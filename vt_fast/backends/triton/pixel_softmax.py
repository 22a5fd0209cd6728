"""The softmax over pixels, or other weights, and what they pool: what tokenize and project_tokenize share."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vt_fast.backends.triton.bags import Pieces
from vt_fast.backends.triton.primitives import (
    UNSPECIALIZED,
    finite,
    indices,
    load_rows,
    product,
    rounded_weights,
)
from vt_fast.backends.triton.schedule import Cut, launch
from vt_fast.backends.triton.settings import ceil_div, power_of_two
from vt_fast.backends.triton.token_softmax import weigh
from vt_fast.precision import compute_dtype


class Results(NamedTuple):
    """What a kernel writes: tokens and lse, or parts of tokens and their :class:`Statistics`.

    A part's tokens are sums of exp(logit - maximum) x, not yet divided. Where weights are no softmax over
    pixels there is a mass in place of lse, and parts have sums of weights and totals alone.
    """

    tokens: Any
    lse: Any
    maximum: Any
    total: Any
    pooled: Any
    seen: Any


class Statistics(NamedTuple):
    """A softmax over the pixels so far: each query's largest logit, and sums of exp(logit - maximum).

    ``total`` sums the weights, ``pooled`` the weights in the dtype that products are taken in. Pooled sums
    are divided by the latter, so that the weights add up to 1 as they are used. ``seen`` counts the pixels.
    Of other weights there is ``total`` alone.
    """

    maximum: Any
    total: Any
    pooled: Any
    seen: Any


@triton.jit
def taking_part(per_pixel, start, end, first, cfg: tl.constexpr):
    """A tile's pixels, whether they exist, whether they take part, and their bias (0 where they do not).

    ``first``: the sample's first entry in mask and bias.
    """
    TILE: tl.constexpr = cfg.TILE
    n = start + indices(TILE, cfg)
    inside = n < end
    ok = inside
    if per_pixel.mask is not None:
        ok = ok & (tl.load(per_pixel.mask + first + n, mask=ok, other=0) != 0)
    if per_pixel.bias is not None:
        bias = tl.load(per_pixel.bias + first + n, mask=ok, other=-float("inf")).to(cfg.ACC)
        ok = ok & (bias != -float("inf"))
        bias = tl.where(ok, bias, 0.0)
    else:
        bias = tl.zeros((TILE,), cfg.ACC)
    return n, inside, ok, bias


@triton.jit
def load_extra_values(per_pixel, n, ok, cfg: tl.constexpr):
    """[pixels, columns] of extra_values; 0 where there is none."""
    p = tl.arange(0, cfg.EXTRA_PADDED)
    at = per_pixel.extra_values + n[:, None] * cfg.EXTRA + p[None, :]
    return tl.load(at, mask=ok[:, None] & (p < cfg.EXTRA)[None, :], other=0.0)


@triton.jit
def query_rows(cfg: tl.constexpr):
    """The number of each padded row in memory, and whether it exists."""
    q = tl.arange(0, cfg.QUERIES_PADDED)
    if cfg.GROUPS > 1:
        group = q // cfg.TOKENS_PADDED
        token = q % cfg.TOKENS_PADDED
        return group * cfg.TOKENS + token, (group < cfg.GROUPS) & (token < cfg.TOKENS)
    else:
        return q, q < cfg.QUERIES


@triton.jit
def load_token_bias(token_bias, sample, head, q, exists, cfg: tl.constexpr):
    """Each row's bias: -inf for a row that is removed or does not exist."""
    if token_bias.data is not None:
        at = token_bias.data + sample * token_bias.batch + head * cfg.QUERIES + q
        return tl.load(at, mask=exists, other=-float("inf")).to(cfg.ACC)
    else:
        return tl.where(exists, 0.0, -float("inf")).to(cfg.ACC)


@triton.jit
def add_moments(mean, squares, chunk, i, channels, cfg: tl.constexpr):
    """Each pixel's mean, and sum of squares about it, with those of the i-th chunk of its channels.

    Chunks are put together as by Chan: no square of a large mean is subtracted.
    """
    values = chunk.to(cfg.ACC)
    before = tl.zeros((), cfg.ACC) + i * cfg.CHUNK
    count = tl.minimum(cfg.CHANNELS - before, cfg.CHUNK)
    here = tl.sum(values, 1) / count
    away = values - here[:, None]
    if cfg.RAGGED:
        away = tl.where((channels < cfg.CHANNELS)[None, :], away, 0.0)
    step = here - mean
    share = count / (before + count)
    return mean + step * share, squares + tl.sum(away * away, 1) + step * step * (before * share)


@triton.jit
def inverse_deviation(squares, epsilon, cfg: tl.constexpr):
    """What a pixel is multiplied with."""
    return 1.0 / tl.sqrt(squares / cfg.CHANNELS + epsilon)


@triton.jit
def normalised(chunk, mean, inverse):
    """A chunk [pixels, channels] of normalised pixels, not yet rounded.

    The weights must not take up the factor: it is large for a constant pixel, and float16 could not hold it.
    """
    return (chunk.to(mean.dtype) - mean[:, None]) * inverse[:, None]


@triton.jit
def of_normalised(products, mean, inverse, row_sums):
    """Products of normalised pixels with rows, by those of the pixels and the sums of the rows' numbers."""
    return (products - mean[:, None] * row_sums[None, :]) * inverse[:, None]


@triton.jit
def no_statistics(cfg: tl.constexpr):
    """Before the first pixel."""
    QUERIES: tl.constexpr = cfg.QUERIES_PADDED
    zeros = tl.zeros((QUERIES,), cfg.ACC)
    return Statistics(tl.full((QUERIES,), -float("inf"), cfg.ACC), zeros, zeros, 0)


@triton.jit
def softmax_over_pixels(logits, ok, before, ROUNDED: tl.constexpr, LIMIT: tl.constexpr):
    """Weights of one more tile, by what older sums are scaled, and the statistics with this tile's.

    The weights are relative to the largest logit so far and in the dtype ROUNDED.
    """
    logits = tl.where(ok[:, None], logits, -float("inf"))
    maximum = tl.maximum(before.maximum, tl.max(logits, 0))
    base = finite(maximum, LIMIT)
    scale = tl.exp(before.maximum - base)
    weights = tl.exp(logits - base[None, :])
    rounded = weights.to(ROUNDED)
    total = before.total * scale + tl.sum(weights, 0)
    pooled = before.pooled * scale + tl.sum(rounded.to(before.pooled.dtype), 0)
    seen = before.seen + tl.sum(ok.to(tl.int32), 0)
    return rounded, scale, Statistics(maximum, total, pooled, seen)


@triton.jit
def plain_weights(logits, row_bias, ok, before, DTYPE: tl.constexpr, cfg: tl.constexpr):
    """Weights of one more tile that are no softmax over pixels, and the statistics with this tile's."""
    POOLING: tl.constexpr = cfg.POOLING  # Triton 3.6 passes no text of a tuple
    weights = tl.where(ok[:, None], weigh(logits, row_bias, POOLING, cfg), 0.0)
    total = before.total + tl.sum(weights, 0)
    after = Statistics(before.maximum, total, before.pooled, before.seen)
    return rounded_weights(weights, DTYPE, cfg), after


@triton.jit
def rescaled(sums, scale, cfg: tl.constexpr):
    """Sums [columns, queries] of the tiles before, for weights relative to the largest logit so far."""
    if cfg.POOLING == "pixels":
        return sums * scale[None, :]
    else:
        return sums


@triton.jit
def store_pooled(to, sums, there, statistics, cfg: tl.constexpr):
    """Sums [columns, queries] as they are, or DIRECT: the tokens, 0 if no pixel takes part."""
    if cfg.DIRECT and cfg.POOLING == "pixels":
        some = statistics.seen > 0
        if cfg.PARTIAL:
            some = (statistics.pooled != 0)[None, :]
        sums = tl.where(some, sums / statistics.pooled[None, :], 0.0)
    tl.store(to, sums.to(to.dtype.element_ty), mask=there)


@triton.jit
def store_statistics(out, item, part, statistics, cfg: tl.constexpr):
    """What :func:`combine` puts together, or DIRECT: lse or mass."""
    q, ok = query_rows(cfg)
    if cfg.POOLING != "pixels":
        to = out.lse + item * cfg.QUERIES if cfg.DIRECT else out.total + part * cfg.QUERIES
        tl.store(to + q, statistics.total, mask=ok)
    elif cfg.DIRECT:
        lse = tl.log(statistics.total) + finite(statistics.maximum, cfg.LIMIT)
        tl.store(out.lse + item * cfg.QUERIES + q, lse, mask=ok)
    else:
        tl.store(out.maximum + part * cfg.QUERIES + q, statistics.maximum, mask=ok)
        tl.store(out.total + part * cfg.QUERIES + q, statistics.total, mask=ok)
        tl.store(out.pooled + part * cfg.QUERIES + q, statistics.pooled, mask=ok)
        tl.store(out.seen + part, statistics.seen)


@triton.jit
def store_extra(to, sums, query_ok, statistics, cfg: tl.constexpr):
    """The pooled extra_values, which come after the channels. ``to``: each query's first such column."""
    p = tl.arange(0, cfg.EXTRA_PADDED)
    there = (p < cfg.EXTRA)[:, None] & query_ok[None, :]
    store_pooled(to + p[:, None], sums, there, statistics, cfg)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def combine(
    parts,
    tokens,
    lse,
    pieces,
    splits,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXTRA: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
    POOLING: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """Puts the tokens of parts of the pixels together, in a fixed order.

    Grid: blocks of columns x QUERIES x (B * heads). See tokenize_forward for the parts. tokens
    (B, QUERIES, HEADS * CHANNELS + EXTRA) in any dtype, lse or mass (B, HEADS * QUERIES). pieces, if any:
    each bag's first part, of those of a head.
    """
    WIDTH: tl.constexpr = CHANNELS + EXTRA
    ACC: tl.constexpr = parts.tokens.dtype.element_ty
    BLOCKS: tl.constexpr = (CHANNELS + EXTRA + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    block = program % BLOCKS
    query = program // BLOCKS % QUERIES
    item = (program // (BLOCKS * QUERIES)).to(tl.int64)
    sample = item // HEADS
    head = item % HEADS
    column = block * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, AT_ONCE)
    first = item * splits
    if pieces is not None:
        first = tl.load(pieces + sample)
        splits_each = (tl.load(pieces + sample + 1) - first).to(tl.int32)
        first += head * splits
    else:
        splits_each = splits

    maximum = tl.full((), -float("inf"), ACC)
    if POOLING == "pixels":
        for start in tl.range(0, splits_each, AT_ONCE):
            at = (first + start + s) * QUERIES + query
            tops = tl.load(parts.maximum + at, mask=start + s < splits_each, other=-float("inf"))
            maximum = tl.maximum(maximum, tl.max(tops, 0))
    base = finite(maximum, LIMIT)

    total = tl.zeros((), ACC)
    pooled = tl.zeros((), ACC)
    seen = tl.zeros((), tl.int32)
    sums = tl.zeros((BLOCK,), ACC)
    for start in tl.range(0, splits_each, AT_ONCE):
        ok = start + s < splits_each
        part = first + start + s
        at = part * QUERIES + query
        if POOLING == "pixels":
            factor = tl.exp(tl.load(parts.maximum + at, mask=ok, other=-float("inf")) - base)
            total += tl.sum(factor * tl.load(parts.total + at, mask=ok, other=0.0), 0)
            pooled += tl.sum(factor * tl.load(parts.pooled + at, mask=ok, other=0.0), 0)
            seen += tl.sum(tl.load(parts.seen + part, mask=ok, other=0), 0)
        else:
            total += tl.sum(tl.load(parts.total + at, mask=ok, other=0.0), 0)
        some = tl.load(
            parts.tokens + at[:, None] * WIDTH + column[None, :],
            mask=ok[:, None] & (column < WIDTH)[None, :],
            other=0.0,
        )
        if POOLING == "pixels":
            some = factor[:, None] * some
        sums += tl.sum(some, 0)
    if POOLING == "pixels":
        # A sample of which no pixel takes part, or a row with no weight, has tokens of 0.
        sums = tl.where(pooled != 0 if PARTIAL else seen > 0, sums / pooled, 0.0)
    # extra_values come after the channels of all heads, and there is one head then.
    to = tokens + (sample * QUERIES + query) * (HEADS * CHANNELS + EXTRA) + head * CHANNELS
    tl.store(to + column, sums.to(to.dtype.element_ty), mask=column < WIDTH)
    if block == 0:
        to_lse = lse + (sample * HEADS + head) * QUERIES + query
        if POOLING == "pixels":
            total = tl.log(total) + base
        tl.store(to_lse, total)


class Pooled:
    """The tokens (B, queries, num_heads * channels + extra) and lse (B, num_heads * queries) of a launch.

    ``pooling`` and ``partial``: as kernels are told. Parts are of ``pieces`` where there are bags.
    """

    def __init__(
        self,
        x: Tensor,
        num_heads: int,
        queries: int,
        channels: int,
        extra: int,
        made: Cut,
        *,
        exact: bool,
        pooling: str = "pixels",
        partial: bool = False,
        pieces: Pieces | None = None,
    ) -> None:
        sums, width = compute_dtype(x.dtype), channels + extra
        batch, splits = x.shape[0], made.parts
        if pieces is not None:
            batch, splits = pieces.bag_count, pieces.count
        self._sizes = batch, num_heads, queries, channels, extra
        self._splits, self._pooling, self._partial, self._pieces = splits, pooling, partial, pieces
        self.tokens = x.new_empty(
            (batch, queries, num_heads * channels + extra), dtype=sums if exact else x.dtype
        )
        self.lse = x.new_empty((batch, num_heads * queries), dtype=sums)
        if made.direct and pieces is None:
            self._parts = None
            self.results = Results(self.tokens, self.lse, None, None, None, None)
        else:
            shape = (x.shape[0] * num_heads, splits, queries)
            total = x.new_empty(shape, dtype=sums)
            self._parts = x.new_empty((*shape, width), dtype=sums)
            self.results = Results(self._parts, None, None, total, None, None)
            if pooling == "pixels":
                maximum, pooled = (x.new_empty(shape, dtype=sums) for _ in range(2))
                seen = x.new_empty(shape[:2], dtype=torch.int32)
                self.results = Results(self._parts, None, maximum, total, pooled, seen)

    def combined(self, limit: float) -> tuple[Tensor, Tensor]:
        """Tokens and lse, after the kernel."""
        if self._parts is not None:
            batch, num_heads, queries, channels, extra = self._sizes
            block = min(256, power_of_two(channels + extra, 16))
            launch(
                combine,
                (ceil_div(channels + extra, block) * queries * batch * num_heads,),
                self.results,
                self.tokens,
                self.lse,
                None if self._pieces is None else self._pieces.first,
                self._splits,
                HEADS=num_heads,
                QUERIES=queries,
                CHANNELS=channels,
                EXTRA=extra,
                AT_ONCE=min(16, power_of_two(self._splits)),
                BLOCK=block,
                LIMIT=limit,
                POOLING=self._pooling,
                PARTIAL=self._partial,
            )
        return self.tokens, self.lse


@triton.jit
def add_extra_grads(grads, at, per_pixel, n, ok, q, query_ok, WIDTH: tl.constexpr, cfg: tl.constexpr):
    """The extra_values' share of the products with the tokens' gradients; ``at``: the first such column."""
    p = tl.arange(0, cfg.EXTRA_PADDED)
    extra = load_extra_values(per_pixel, n, ok, cfg)
    of_extra = load_rows(at, q, WIDTH, p, query_ok, p < cfg.EXTRA, True)
    return product(extra, of_extra, grads, cfg)


@triton.jit
def softmax_over_pixels_backward(logits, grads, log_sums, means, ok, query_ok):
    """The weights A = exp(S - lse) and dS = A * (dA - delta), 0 where there is none."""
    weights = tl.exp(logits - log_sums[None, :])
    inner = weights * (grads - means[None, :])
    use = ok[:, None] & query_ok[None, :]
    return tl.where(use, weights, 0.0), tl.where(use, inner, 0.0)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def deltas(
    grad_tokens,
    tokens,
    grad_lse,
    delta,
    rows,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """delta (B, HEADS * QUERIES): the sum of dT * T over a head's CHANNELS columns, less dlse.

    Grid: blocks of ROWS of the B * HEADS * QUERIES rows. grad_tokens and tokens
    (B, QUERIES, HEADS * CHANNELS). In float64, as gradients are small differences from delta.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    query = row % QUERIES
    head = row // QUERIES % HEADS
    sample = row // (QUERIES * HEADS)
    first = (sample * QUERIES + query) * (HEADS * CHANNELS) + head * CHANNELS
    sums = tl.zeros((ROWS, BLOCK), tl.float64)
    for start in tl.range(0, CHANNELS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = ok[:, None] & (column < CHANNELS)[None, :]
        at = first[:, None] + column[None, :]
        grads = tl.load(grad_tokens + at, mask=there, other=0.0).to(tl.float64)
        sums += grads * tl.load(tokens + at, mask=there, other=0.0).to(tl.float64)
    total = tl.sum(sums, 1)
    if grad_lse is not None:
        total -= tl.load(grad_lse + row, mask=ok, other=0.0).to(tl.float64)
    tl.store(delta + row, total.to(delta.dtype.element_ty), mask=ok)


def make_deltas(
    grad_tokens: Tensor, tokens: Tensor, grad_lse: Tensor | None, lse: Tensor, num_heads: int
) -> Tensor:
    """delta (B, num_heads * L): what the mean of A * dA over the pixels is, less the gradient of lse."""
    delta = torch.empty_like(lse, memory_format=torch.contiguous_format)
    batch, count, width = tokens.shape
    total = batch * num_heads * count
    launch(
        deltas,
        (ceil_div(total, 4),),
        grad_tokens,
        tokens.contiguous(),
        None if grad_lse is None else grad_lse.contiguous(),
        delta,
        total,
        HEADS=num_heads,
        QUERIES=count,
        CHANNELS=width // num_heads,
        ROWS=4,
        BLOCK=min(256, power_of_two(width // num_heads, 16)),
    )
    return delta


def extra_values_gradient(attention: Tensor, grad_extra: Tensor) -> Tensor:
    """(N, P) from weights (B, N, L) and the gradients (B, L, P) of the tokens' columns."""
    return torch.einsum("bnl,blp->np", attention, grad_extra.to(attention.dtype))

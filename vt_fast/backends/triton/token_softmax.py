"""The softmax over tokens, and the padded rows that it is over: what project and project_tokenize share."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from vt_fast.backends.contract import (
    Project,
    ProjectBackward,
    ProjectTokenize,
    ProjectTokenizeBackward,
    row_count,
    sees_block,
    sums_heads,
)
from vt_fast.backends.triton.bags import Pieces, summed_by_bag
from vt_fast.backends.triton.primitives import finite, load_rows, store_sums
from vt_fast.backends.triton.schedule import Cut, part_dtype, summed
from vt_fast.backends.triton.settings import power_of_two
from vt_fast.layout import channel_count
from vt_fast.precision import compute_dtype


class TokenRows(NamedTuple):
    """The padded rows of scores, HEADS_PADDED heads of TOKENS_PADDED tokens: a softmax is over a whole axis.

    Head and token of each row, its number in memory, whether it exists, and whether it counts: what a removed
    row holds must not be looked at.
    """

    head: Any
    token: Any
    row: Any
    exists: Any
    counts: Any


class Parts(NamedTuple):
    """Where a backward leaves its sums over pixels, None where not needed.

    (B, splits, ...) of the operands' shapes, dtoken_bias (B, splits, HEADS * TOKENS) and dqueries (B, splits,
    QUERIES, OUT_CHANNELS).
    """

    dkeys: Any
    dvalues: Any
    dtoken_bias: Any
    dqueries: Any


@triton.jit
def token_rows(token_bias, sample, cfg: tl.constexpr):
    """The rows, and each one's bias: -inf for a row that is removed or does not exist."""
    r = tl.arange(0, cfg.HEADS_PADDED * cfg.TOKENS_PADDED)
    head = r // cfg.TOKENS_PADDED
    token = r % cfg.TOKENS_PADDED
    exists = (head < cfg.HEADS) & (token < cfg.TOKENS)
    row = head * cfg.TOKENS + token
    if token_bias.data is not None:
        at = token_bias.data + sample * token_bias.batch + row
        bias = tl.load(at, mask=exists, other=-float("inf")).to(cfg.ACC)
    else:
        bias = tl.where(exists, 0.0, -float("inf")).to(cfg.ACC)
    return TokenRows(head, token, row, exists, bias != -float("inf")), bias


@triton.jit
def load_keys(keys, tokens, channels, RAGGED: tl.constexpr, cfg: tl.constexpr):
    """[channels, rows]: the keys of rows that count, where the channels are those they see, else 0."""
    if cfg.BLOCK_KEYS:
        first = (tokens.row - tokens.head) * (cfg.CHANNELS // cfg.HEADS)
        own = own_channels(channels, tokens.head, cfg.CHANNELS, cfg) & tokens.counts[None, :]
        return tl.load(keys + channels[:, None] + first[None, :], mask=own, other=0.0)
    else:
        return load_rows(
            keys, tokens.row, cfg.CHANNELS, channels, tokens.counts, channels < cfg.CHANNELS, RAGGED
        )


@triton.jit
def load_values(values, tokens, channels, RAGGED: tl.constexpr, cfg: tl.constexpr):
    """[channels, rows]: a head's rows where the channels are those it writes, else 0."""
    at = values + channels[:, None] + value_rows(tokens, cfg)[None, :] * cfg.OUT_CHANNELS
    if cfg.HEADS > 1 and not cfg.SUMMED:
        own = own_channels(channels, tokens.head, cfg.OUT_CHANNELS, cfg) & tokens.counts[None, :]
        return tl.load(at, mask=own & (channels < cfg.OUT_CHANNELS)[:, None], other=0.0)
    elif RAGGED:
        return tl.load(at, mask=(channels < cfg.OUT_CHANNELS)[:, None] & tokens.counts[None, :], other=0.0)
    else:
        return tl.load(at, mask=tokens.counts[None, :], other=0.0)


@triton.jit
def value_rows(tokens, cfg: tl.constexpr):
    """The number of each row in the values: heads share them, or have their own, which are summed."""
    if cfg.SUMMED:
        return tokens.row
    else:
        return tokens.token


@triton.jit
def own_channels(channels, head, CHANNELS: tl.constexpr, cfg: tl.constexpr):
    """[channels, rows]: whether a channel of CHANNELS is of the block of a row's head."""
    return (channels // (CHANNELS // cfg.HEADS))[:, None] == head[None, :]


@triton.jit
def weigh(scores, token_bias, NORMALIZE: tl.constexpr, cfg: tl.constexpr):
    """[pixels, rows] of weights: 0 in removed rows, and in heads all of whose rows are removed."""
    removed = token_bias == -float("inf")
    scores = tl.where(removed[None, :], -float("inf"), scores + token_bias[None, :])
    if NORMALIZE == "tokens":
        return softmax_over_tokens(scores, removed, cfg)
    elif NORMALIZE == "exp":
        return tl.exp(scores)
    else:
        return tl.where(removed[None, :], 0.0, scores)


@triton.jit
def softmax_over_tokens(scores, removed, cfg: tl.constexpr):
    """The softmax over the rows of each head."""
    TILE: tl.constexpr = cfg.TILE
    HEADS: tl.constexpr = cfg.HEADS_PADDED
    TOKENS: tl.constexpr = cfg.TOKENS_PADDED
    if HEADS == 1:
        base = finite(tl.max(scores, 1), cfg.LIMIT)
        weights = tl.exp(scores - base[:, None])
        total = tl.sum(weights, 1)
        if cfg.PARTIAL:
            total = tl.where(total == 0, 1.0, total)
        weights = weights / total[:, None]
    else:
        parts = tl.reshape(scores, (TILE, HEADS, TOKENS))
        base = finite(tl.max(parts, 2), cfg.LIMIT)
        parts = tl.exp(parts - base[:, :, None])
        total = tl.sum(parts, 2)
        if cfg.PARTIAL:
            total = tl.where(total == 0, 1.0, total)
        parts = parts / total[:, :, None]
        weights = tl.reshape(parts, (TILE, HEADS * TOKENS))
    # For each row, whether all rows of its head are removed.
    left = tl.reshape(1 - removed.to(tl.int32), (HEADS, TOKENS))
    empty = tl.broadcast_to(tl.sum(left, 1)[:, None] == 0, (HEADS, TOKENS))
    return tl.where(tl.reshape(empty, (HEADS * TOKENS,))[None, :], 0.0, weights)


@triton.jit
def weigh_backward(weights, grads, token_bias, NORMALIZE: tl.constexpr, cfg: tl.constexpr):
    """dS by the weights and their gradients."""
    if NORMALIZE == "tokens":
        return softmax_over_tokens_backward(weights, grads, cfg)
    elif NORMALIZE == "exp":
        return weights * grads
    else:
        return tl.where((token_bias == -float("inf"))[None, :], 0.0, grads)


@triton.jit
def softmax_over_tokens_backward(weights, grads, cfg: tl.constexpr):
    """dS = P * (dP - sum of P * dP over a head's tokens)."""
    TILE: tl.constexpr = cfg.TILE
    HEADS: tl.constexpr = cfg.HEADS_PADDED
    TOKENS: tl.constexpr = cfg.TOKENS_PADDED
    if HEADS == 1:
        return weights * (grads - tl.sum(weights * grads, 1)[:, None])
    else:
        parts = tl.reshape(weights * grads, (TILE, HEADS, TOKENS))
        inner = tl.broadcast_to(tl.sum(parts, 2)[:, :, None], (TILE, HEADS, TOKENS))
        return weights * (grads - tl.reshape(inner, (TILE, HEADS * TOKENS)))


@triton.jit
def store_dkeys(dkeys, part, tokens, channels, sums, follows, ONE_TILE: tl.constexpr, cfg: tl.constexpr):
    """Sums [channels, rows] of a part, onto those of the previous tile if one ``follows``."""
    ROWS: tl.constexpr = cfg.HEADS * cfg.TOKENS
    exists = tokens.exists[None, :]
    if cfg.BLOCK_KEYS:
        exists = exists & own_channels(channels, tokens.head, cfg.CHANNELS, cfg)
        store_sums(
            dkeys, part, channels, tokens.row - tokens.head, exists, sums, follows, cfg.CHANNELS, ROWS,
            ONE_TILE, cfg.HEADS,
        )  # fmt: skip
    else:
        store_sums(dkeys, part, channels, tokens.row, exists, sums, follows, cfg.CHANNELS, ROWS, ONE_TILE)


@triton.jit
def store_dvalues(dvalues, part, tokens, channels, sums, follows, ONE_TILE: tl.constexpr, cfg: tl.constexpr):
    """The same. A row that heads share gets from each its own channels."""
    ROWS: tl.constexpr = cfg.TOKENS * (cfg.HEADS if cfg.SUMMED else 1)
    exists = tokens.exists[None, :]
    if cfg.HEADS > 1 and not cfg.SUMMED:
        exists = exists & own_channels(channels, tokens.head, cfg.OUT_CHANNELS, cfg)
    rows = value_rows(tokens, cfg)
    store_sums(dvalues, part, channels, rows, exists, sums, follows, cfg.OUT_CHANNELS, ROWS, ONE_TILE)


@triton.jit
def leave_dkeys(parts, slot, tokens, channels, sums, cfg: tl.constexpr):
    """As :func:`vt_fast.backends.triton.primitives.leave_sums`."""
    if cfg.LOOPS > 1:
        store_dkeys(parts.dkeys, slot[0], tokens, channels, sums, slot[1], cfg.ONE_TILE, cfg)
        return ()
    else:
        return (sums,)


@triton.jit
def leave_dvalues(parts, slot, tokens, channels, sums, cfg: tl.constexpr):
    """The same."""
    if cfg.LOOPS > 1:
        store_dvalues(parts.dvalues, slot[0], tokens, channels, sums, slot[1], cfg.ONE_TILE, cfg)
        return ()
    else:
        return (sums,)


@triton.jit
def store_dtoken_bias(dtoken_bias, part, tokens, sums, cfg: tl.constexpr):
    """Sums [rows] of a part."""
    to = dtoken_bias + part * (cfg.HEADS * cfg.TOKENS) + tokens.row
    tl.store(to, sums.to(dtoken_bias.dtype.element_ty), mask=tokens.exists)


class SmallGradients:
    """The gradients of keys, values, token_bias and queries, in parts of the pixels.

    With bags each piece leaves a part. ``across``, a part of what they share is of several pieces instead.
    """

    def __init__(
        self,
        made: Cut,
        x: Tensor,
        operands: list[Tensor | None],
        needs: list[bool],
        pieces: Pieces | None = None,
        *,
        across: bool = False,
    ) -> None:
        """``operands``: keys, values, token_bias and queries."""
        sums, direct = compute_dtype(x.dtype), made.direct and pieces is None
        self._pieces = pieces
        self._needed: list[tuple[Tensor, Tensor, bool] | None] = []
        for operand, needed, width in zip(operands, needs, (2, 2, 1, 2), strict=True):
            if operand is None or not needed:
                self._needed.append(None)
                continue
            shared = operand.dim() == width
            shape = operand.shape if shared else operand.shape[1:]
            dtype = part_dtype(operand, direct and not shared, sums)
            parts = made.parts if pieces is None or (across and shared) else pieces.count
            part = x.new_empty((x.shape[0], parts, *shape), dtype=dtype)
            if pieces is not None and made.loops > 1:
                part.zero_()  # a piece without pixels leaves nothing
            self._needed.append((part, operand, shared))
        self.parts = Parts(*[None if each is None else each[0] for each in self._needed])

    def summed(self) -> list[Tensor | None]:
        """After the kernel."""
        return [None if each is None else self._sum(*each) for each in self._needed]

    def _sum(self, part: Tensor, operand: Tensor, shared: bool) -> Tensor:
        if self._pieces is None or shared:
            return summed(part, operand, shared=shared)
        return summed_by_bag(part, self._pieces, operand)


class Heads(NamedTuple):
    """The rows of scores: heads and tokens, padded ones, and how many that makes."""

    HEADS: int
    TOKENS: int
    HEADS_PADDED: int
    TOKENS_PADDED: int
    BLOCK_KEYS: bool
    SUMMED: bool

    @classmethod
    def of(cls, call: Project | ProjectBackward | ProjectTokenize | ProjectTokenizeBackward) -> "Heads":
        """With tokens padded to at least 16, as products take them."""
        scores, offsets = getattr(call, "scores", None), getattr(call, "offsets", None)
        num_heads, rows = call.num_heads, row_count(call.keys, scores, offsets)
        tokens = rows // num_heads
        return cls(
            num_heads,
            tokens,
            power_of_two(num_heads),
            power_of_two(tokens, 16),
            sees_block(call.keys, channel_count(call.x), num_heads),
            sums_heads(call.values, rows, num_heads),
        )

    @property
    def padded(self) -> int:
        """Padded rows."""
        return self.HEADS_PADDED * self.TOKENS_PADDED


def numbers_each(rows: Tensor | None) -> int:
    """The numbers of an operand's rows, for each sample."""
    return 0 if rows is None else rows.shape[-2] * rows.shape[-1]


def residual_kind(residual: Tensor | None, residual_is_input: bool) -> str:
    """As kernels are told."""
    return "input" if residual_is_input else "none" if residual is None else "map"

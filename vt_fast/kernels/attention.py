"""The projector's half: rows of keys and values, and each pixel's softmax over the tokens.

Rows are padded: HEADS_PADDED heads of TOKENS_PADDED tokens, so that a softmax is over a whole axis.
"""

import triton
import triton.language as tl


@triton.jit
def padded_rows(
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, TOKENS: tl.constexpr, TOKENS_PADDED: tl.constexpr
):
    """Head and token of each padded row, and whether there is such a row."""
    r = tl.arange(0, HEADS_PADDED * TOKENS_PADDED)
    head = r // TOKENS_PADDED
    token = r % TOKENS_PADDED
    return head, token, (head < HEADS) & (token < TOKENS)


@triton.jit
def load_bias(
    token_bias, head, token, row_ok, HAS_TOKEN_BIAS: tl.constexpr, TOKENS: tl.constexpr, ACC: tl.constexpr
):
    """Each row's bias, -inf for a row that is removed or not there."""
    if HAS_TOKEN_BIAS:
        return tl.load(token_bias + head * TOKENS + token, mask=row_ok, other=-float("inf")).to(ACC)
    else:
        return tl.where(row_ok, 0.0, -float("inf")).to(ACC)


@triton.jit
def load_values(
    values,
    head,
    token,
    row_ok,
    channels,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
):
    """[channels, rows]: a head's rows where the channels are its own, else 0."""
    at = values + channels[:, None] + token[None, :] * CHANNELS
    if HEADS > 1:
        own = own_channels(channels, head, CHANNELS, HEADS) & row_ok[None, :]
        return tl.load(at, mask=own & (channels < CHANNELS)[:, None], other=0.0)
    elif MASK_CHANNELS:
        return tl.load(at, mask=(channels < CHANNELS)[:, None] & row_ok[None, :], other=0.0)
    else:
        return tl.load(at, mask=row_ok[None, :], other=0.0)


@triton.jit
def own_channels(channels, head, CHANNELS: tl.constexpr, HEADS: tl.constexpr):
    """[channels, rows]: whether a channel is of a row's head."""
    return (channels // (CHANNELS // HEADS))[:, None] == head[None, :]


@triton.jit
def softmax_over_tokens(
    scores, token_bias, HEADS_PADDED: tl.constexpr, TOKENS_PADDED: tl.constexpr, LIMIT: tl.constexpr
):
    """[pixels, rows] of weights: 0 in removed rows, and in heads all of whose rows are removed."""
    TILE: tl.constexpr = scores.shape[0]
    removed = token_bias == -float("inf")
    scores = tl.where(removed[None, :], -float("inf"), scores + token_bias[None, :])
    if HEADS_PADDED == 1:
        base = tl.minimum(tl.maximum(tl.max(scores, 1), -LIMIT), LIMIT)
        weights = tl.exp(scores - base[:, None])
        weights = weights / tl.sum(weights, 1)[:, None]
    else:
        parts = tl.reshape(scores, (TILE, HEADS_PADDED, TOKENS_PADDED))
        base = tl.minimum(tl.maximum(tl.max(parts, 2), -LIMIT), LIMIT)
        parts = tl.exp(parts - base[:, :, None])
        parts = parts / tl.sum(parts, 2)[:, :, None]
        weights = tl.reshape(parts, (TILE, HEADS_PADDED * TOKENS_PADDED))
    return tl.where(empty_heads(removed, HEADS_PADDED, TOKENS_PADDED)[None, :], 0.0, weights)


@triton.jit
def empty_heads(removed, HEADS_PADDED: tl.constexpr, TOKENS_PADDED: tl.constexpr):
    """For each row, whether all rows of its head are removed."""
    kept = tl.reshape(1 - removed.to(tl.int32), (HEADS_PADDED, TOKENS_PADDED))
    none = tl.sum(kept, 1)[:, None] == 0
    return tl.reshape(tl.broadcast_to(none, (HEADS_PADDED, TOKENS_PADDED)), (HEADS_PADDED * TOKENS_PADDED,))


@triton.jit
def softmax_over_tokens_backward(weights, grads, HEADS_PADDED: tl.constexpr, TOKENS_PADDED: tl.constexpr):
    """dS = P * (dP - sum of P * dP over a head's tokens)."""
    TILE: tl.constexpr = weights.shape[0]
    if HEADS_PADDED == 1:
        return weights * (grads - tl.sum(weights * grads, 1)[:, None])
    else:
        parts = tl.reshape(weights * grads, (TILE, HEADS_PADDED, TOKENS_PADDED))
        inner = tl.broadcast_to(tl.sum(parts, 2)[:, :, None], (TILE, HEADS_PADDED, TOKENS_PADDED))
        return weights * (grads - tl.reshape(inner, (TILE, HEADS_PADDED * TOKENS_PADDED)))

"""The token transformer, equations 3 and 4, its other forms, and the other relations of the ablation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vt_fast.reference._checks import check_shape, join_heads, split_heads
from vt_fast.reference.linear import Projection
from vt_fast.reference.linear import linear as apply


def token_attention(
    tokens: Tensor, key: Projection, query: Projection, *, num_heads: int = 1, scale: float = 1.0
) -> Tensor:
    """Weigh the tokens for each token: softmax_L((T K)(T Q)^T), the attention of equation 3.

    As the paper writes it, the rows are the keys' side: row i weighs the tokens j by (T K)_i . (T Q)_j and
    sums to 1 over j.

    Args:
        tokens: T (B, L, CT).
        key: K, CT -> width.
        query: Q, CT -> width.
        num_heads: a divisor of width; head h uses block h of the channels.
        scale: multiplies the logits.

    Returns:
        weights (B, num_heads, L, L).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> zero = Projection(torch.zeros(2, 4))
        >>> token_attention(torch.ones(1, 2, 4), zero, zero).tolist()
        [[[[0.5, 0.5], [0.5, 0.5]]]]
    """
    check_shape("tokens", tokens, B=None, L=None, CT=None)
    keys, queries = apply(tokens, key), apply(tokens, query)
    check_shape("the queries", queries, B=keys.shape[0], L=keys.shape[1], width=keys.shape[2])
    keys, queries = split_heads("the keys", keys, num_heads), split_heads("the queries", queries, num_heads)
    return torch.softmax(scale * (keys @ queries.transpose(-2, -1)), dim=-1)


def _add(tokens: Tensor, change: Tensor) -> Tensor:
    """Add a residual branch of exactly the tokens' shape."""
    check_shape("the residual branch", change, B=tokens.shape[0], L=tokens.shape[1], CT=tokens.shape[2])
    return tokens + change


def _attend(
    tokens: Tensor, key: Projection, query: Projection, value: Projection | None, num_heads: int, scale: float
) -> Tensor:
    """Equation 3: T' = T + softmax_L((T K)(T Q)^T) T, or (T V) for the last T."""
    return _add(tokens, _mix(tokens, key, query, value, num_heads, scale))


def _mix(
    tokens: Tensor, key: Projection, query: Projection, value: Projection | None, num_heads: int, scale: float
) -> Tensor:
    weights = token_attention(tokens, key, query, num_heads=num_heads, scale=scale)
    values = tokens if value is None else apply(tokens, value)
    return join_heads(weights @ split_heads("the values", values, num_heads))


def transformer(
    tokens: Tensor,
    key: Projection,
    query: Projection,
    first: Projection,
    second: Projection,
    *,
    value: Projection | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """Token transformer, equations 3 and 4.

    T' = T + softmax_L((T K)(T Q)^T) T;  T_out = T' + relu(T' F1) F2.

    The equations have one head, no scale and no value projection; with `value` the last T of equation 3 is
    T V. There is no normalisation layer. With heads, each takes one block of the channels of keys, queries
    and values.

    Args:
        tokens: T (B, L, CT).
        key: K, CT -> width.
        query: Q, CT -> width.
        first: F1, CT -> hidden width.
        second: F2, hidden width -> CT.
        value: V, CT -> CT; None mixes the tokens themselves.
        num_heads: a divisor of width and CT.
        scale: multiplies the logits.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
        >>> zero = Projection(torch.zeros(2, 2))
        >>> transformer(tokens, zero, zero, zero, zero).tolist()  # equal weights: each token gains the mean
        [[[3.0, 0.0], [5.0, 0.0]]]
    """
    tokens = _attend(tokens, key, query, value, num_heads, scale)
    return _add(tokens, apply(F.relu(apply(tokens, first)), second))


def transformer_v1(
    tokens: Tensor,
    key: Projection,
    query: Projection,
    value: Projection,
    linear: Projection,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """Token transformer of the first version: attention with values, then one linear layer with residual.

    T' = T + softmax_L((T K)(T Q)^T) (T V);  T_out = T' + T' F.

    Args:
        tokens: T (B, L, CT).
        key: K, CT -> width (CT / 2 in the paper).
        query: Q, CT -> width.
        value: V, CT -> CT.
        linear: F, CT -> CT.
        num_heads: a divisor of width and CT.
        scale: multiplies the logits.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> tokens = torch.tensor([[[1.0], [3.0]]])
        >>> zero, one = Projection(torch.zeros(1, 1)), Projection(torch.ones(1, 1))
        >>> transformer_v1(tokens, zero, zero, one, one).tolist()
        [[[6.0], [10.0]]]
    """
    tokens = _attend(tokens, key, query, value, num_heads, scale)
    return _add(tokens, apply(tokens, linear))


def scaled_attention(
    tokens: Tensor,
    key: Projection,
    query: Projection,
    value: Projection,
    gain: Tensor,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """Token transformer of TU Berlin's description: the attention's result times a learned scale, no more.

    T_out = T + softmax_L((T K)(T Q)^T) (T V) s.

    Args:
        tokens: T (B, L, CT).
        key: K, CT -> width.
        query: Q, CT -> width.
        value: V, CT -> CT.
        gain: s (CT,).
        num_heads: a divisor of width and CT.
        scale: multiplies the logits.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> tokens = torch.tensor([[[1.0], [3.0]]])
        >>> zero, one = Projection(torch.zeros(1, 1)), Projection(torch.ones(1, 1))
        >>> scaled_attention(tokens, zero, zero, one, torch.tensor([0.5])).tolist()
        [[[2.0], [4.0]]]
    """
    check_shape("gain", gain, CT=tokens.shape[-1])
    return _add(tokens, _mix(tokens, key, query, value, num_heads, scale) * gain)


def no_relation(tokens: Tensor, weight: Projection) -> Tensor:
    """Token relation "None" of the paper's ablation: one feed-forward layer per token, no exchange.

    T_out = T + relu(T F). By the paper's counts the attention and one feed-forward layer are removed; that
    the remaining layer keeps its ReLU and its residual is our choice.

    Args:
        tokens: T (B, L, CT).
        weight: F, CT -> CT.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> no_relation(torch.tensor([[[1.0], [-1.0]]]), Projection(torch.ones(1, 1))).tolist()
        [[[2.0], [-1.0]]]
    """
    check_shape("tokens", tokens, B=None, L=None, CT=None)
    return _add(tokens, F.relu(apply(tokens, weight)))


def graph_convolution(tokens: Tensor, adjacency: Tensor, weight: Projection) -> Tensor:
    """Token relation "GraphConv" of the paper's ablation: a learned mix in place of the attention.

    T' = T + A T;  T_out = T' + relu(T' F). By the paper's counts it is `no_relation` plus an L x L mix. The
    residual around the mix is our choice, after equation 3, whose attention A replaces. There is no softmax
    and no normalisation of A.

    Args:
        tokens: T (B, L, CT).
        adjacency: A (L, L), row i holding the weights for token i.
        weight: F, CT -> CT.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> tokens = torch.tensor([[[1.0], [3.0]]])
        >>> swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> graph_convolution(tokens, swap, Projection(torch.zeros(1, 1))).tolist()
        [[[4.0], [4.0]]]
    """
    check_shape("tokens", tokens, B=None, L=None, CT=None)
    check_shape("adjacency", adjacency, rows=tokens.shape[1], columns=tokens.shape[1])
    return no_relation(tokens + adjacency @ tokens, weight)

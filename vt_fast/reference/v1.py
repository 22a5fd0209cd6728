"""The tokenizers of the paper's first version: static filters, and dynamic ones from half of the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vt_fast.reference._checks import check_shape, join_heads, split_heads
from vt_fast.reference.linear import Projection, linear
from vt_fast.reference.tokenizers import filter_tokenizer


def static_tokenizer(
    x: Tensor,
    filters: Tensor,
    *,
    value: Projection | None,
    extra_values: Tensor | None = None,
    token: Projection | None,
) -> Tensor:
    """Static tokenizer (first version): A = softmax_N(X W_A / sqrt(C)), T = A^T (X W_V), then a 1x1 to CT.

    Args:
        x: (B, N, C) pixels.
        filters: W_A transposed, (L, C).
        value: W_V, C -> Cv on the pixels, grouped in the paper; None leaves them as they are.
        extra_values: E (N, P). Both position codes are linear in A, hence A^T E for some table E; see
            `vt_fast.reference.position` for the forms the paper gives them.
        token: Cv + P -> CT on the tokens; None leaves them as they are.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> x = torch.tensor([[[1.0], [3.0]]])
        >>> static_tokenizer(x, torch.zeros(2, 1), value=None, token=Projection(torch.ones(3, 1))).tolist()
        [[[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    check_shape("filters", filters, L=None, C=x.shape[2])
    scale = 1 / math.sqrt(x.shape[2])
    return filter_tokenizer(x, filters, scale=scale, value=value, extra_values=extra_values, token=token)


def dynamic_attention(
    x: Tensor, tokens: Tensor, query: Projection, key: Projection, *, num_heads: int = 16
) -> Tensor:
    """Weigh the pixels for each new token: softmax_N(keys queries^T / sqrt(width / num_heads)), head by head.

    T_in = [T_a | T_b], split at L / 2 along the tokens. Head h takes block h of the channels of the queries
    T_a W_Q and of the keys X W_K; width is that of queries and keys (C in the paper).

    Args:
        x: (B, N, C) pixels.
        tokens: T_in (B, L, CT), L even.
        query: CT -> width on T_a.
        key: C -> width on the pixels, grouped in the paper.
        num_heads: a divisor of the width; the paper has 16.

    Returns:
        weights (B, num_heads, N, L / 2); over the N pixels the weights of each token sum to 1.

    Raises:
        ValueError: the shapes do not fit, L is odd, or `num_heads` does not divide the width.

    Example:
        >>> zero = Projection(torch.zeros(2, 1))
        >>> dynamic_attention(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), zero, zero, num_heads=2).tolist()
        [[[[0.5], [0.5]], [[0.5], [0.5]]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    check_shape("tokens", tokens, B=x.shape[0], L=None, CT=None)
    num_tokens = tokens.shape[1]
    if num_tokens % 2:
        raise ValueError(f"`tokens` must be (B, L, CT) with L even, got {tuple(tokens.shape)}")
    keys = linear(x, key)
    queries = linear(tokens[:, : num_tokens // 2], query)
    check_shape("the queries", queries, B=x.shape[0], **{"L / 2": num_tokens // 2, "width": keys.shape[2]})
    keys = split_heads("the keys", keys, num_heads)
    queries = split_heads("the queries", queries, num_heads)
    return torch.softmax(keys @ queries.transpose(-2, -1) / math.sqrt(keys.shape[-1]), dim=2)


def dynamic_tokenizer(
    x: Tensor,
    tokens: Tensor,
    query: Projection,
    key: Projection,
    *,
    num_heads: int = 16,
    value: Projection | None = None,
    position: Callable[[Tensor], Tensor] | None = None,
    token: Projection | None = None,
) -> Tensor:
    """Dynamic tokenizer (first version): half of the tokens ask for new ones, the other half stay.

    T_in = [T_a | T_b], split at L / 2 along the tokens. Head h pools block h of the channels of the values X
    W_V with its weights, see `dynamic_attention`. The blocks side by side, through the token projection, are
    L / 2 new tokens, and T = [T_b | new].

    The paper does not say how a position code, which takes one map for each token, sees several heads. Here
    it sees their mean.

    Args:
        x: (B, N, C) pixels.
        tokens: T_in (B, L, CT), L even.
        query: CT -> width on T_a.
        key: C -> width on the pixels, grouped in the paper.
        num_heads: a divisor of the widths of keys and values; the paper has 16.
        value: C -> Cv on the pixels; None leaves them as they are.
        position: from attention (B, N, L / 2) to codes (B, L / 2, P), which are appended to the new tokens.
        token: Cv + P -> CT on the new tokens; None leaves them as they are.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit, L is odd, `num_heads` does not divide all widths, or the new
            tokens' width is not CT.

    Example:
        >>> x = torch.tensor([[[1.0], [3.0]]])
        >>> tokens = torch.tensor([[[0.0], [5.0]]])
        >>> one = Projection(torch.ones(1, 1))
        >>> dynamic_tokenizer(x, tokens, one, one, num_heads=1).tolist()
        [[[5.0], [2.0]]]
    """
    attention = dynamic_attention(x, tokens, query, key, num_heads=num_heads)
    values = split_heads("the values", x if value is None else linear(x, value), num_heads)
    new = join_heads(attention.transpose(-2, -1) @ values)
    if position is not None:
        new = torch.cat((new, position(attention.mean(1))), dim=2)
    new = new if token is None else linear(new, token)
    half = tokens.shape[1] // 2
    check_shape("the new tokens", new, B=x.shape[0], **{"L / 2": half, "CT": tokens.shape[2]})
    return torch.cat((tokens[:, half:], new), dim=1)

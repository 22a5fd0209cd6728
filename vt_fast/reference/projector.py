"""The projector: tokens back to pixels, equation 5."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.reference._checks import check_shape, join_heads, split_heads
from vt_fast.reference.linear import Projection, linear


def pixel_attention(
    x: Tensor,
    tokens: Tensor,
    query: Projection | None,
    key: Projection | None,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
) -> Tensor:
    """Weigh the tokens for each pixel: softmax_L((X W_Q)(T W_K)^T), the attention of equation 5.

    Args:
        x: (B, N, C) pixels.
        tokens: T (B, L, CT).
        query: W_Q, C -> width on the pixels; None compares the pixels themselves.
        key: W_K, CT -> width on the tokens; None compares the tokens themselves.
        num_heads: a divisor of width; head h uses block h of the channels.
        scale: multiplies the logits.

    Returns:
        weights (B, num_heads, N, L); over the L tokens the weights of each pixel sum to 1.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> pixel_attention(torch.zeros(1, 1, 3), torch.ones(1, 2, 3), None, None).tolist()
        [[[[0.5, 0.5]]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    check_shape("tokens", tokens, B=x.shape[0], L=None, CT=None)
    queries = x if query is None else linear(x, query)
    keys = tokens if key is None else linear(tokens, key)
    check_shape("the keys", keys, B=x.shape[0], L=tokens.shape[1], width=queries.shape[2])
    queries, keys = split_heads("the queries", queries, num_heads), split_heads("the keys", keys, num_heads)
    return torch.softmax(scale * (queries @ keys.transpose(-2, -1)), dim=-1)


def projector(
    x: Tensor,
    tokens: Tensor,
    query: Projection | None,
    key: Projection | None,
    value: Projection | None,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    shortcut: Projection | None = None,
) -> Tensor:
    """Projector, equation 5: X_out = X + softmax_L((X W_Q)(T W_K)^T) T.

    The equation has one head, no scale and no value projection. The first version has num_heads = 16, scale =
    1 / sqrt(C / num_heads), a grouped `query` and a `value` CT -> C. Where the paper's models change the
    width of the map, `shortcut` replaces the first X.

    Args:
        x: (B, N, C) pixels.
        tokens: T (B, L, CT).
        query: W_Q, C -> width on the pixels; None is the identity.
        key: W_K, CT -> width on the tokens; None is the identity.
        value: W_V, CT -> D on the tokens; None is the identity.
        num_heads: a divisor of width and D; head h weighs with block h of the width and writes block h of D.
        scale: multiplies the logits.
        shortcut: C -> D on the pixels; None is the identity and needs D = C.

    Returns:
        the map (B, N, D).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> x = torch.tensor([[[1.0], [2.0]]])
        >>> tokens = torch.tensor([[[10.0], [30.0]]])
        >>> zero = Projection(torch.zeros(1, 1))
        >>> projector(x, tokens, zero, zero, None).tolist()  # equal weights: each pixel gains the mean token
        [[[21.0], [22.0]]]
    """
    weights = pixel_attention(x, tokens, query, key, num_heads=num_heads, scale=scale)
    values = tokens if value is None else linear(tokens, value)
    change = join_heads(weights @ split_heads("the values", values, num_heads))
    residual = x if shortcut is None else linear(x, shortcut)
    check_shape("the residual", residual, B=x.shape[0], N=x.shape[1], D=change.shape[2])
    return residual + change

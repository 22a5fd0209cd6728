"""The tokenizers of the paper's second and later versions: pixels to tokens, equations 1 and 2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vt_fast.reference._checks import check_count, check_rows, check_shape
from vt_fast.reference.linear import Projection, linear


def spatial_attention(x: Tensor, filters: Tensor, *, scale: float = 1.0) -> Tensor:
    """Weigh the pixels for each token: A = softmax_N(scale X W_A), the first half of equations 1 and 2.

    There is no filter bias: it would add a constant to one token's logits, which the softmax cancels.

    Args:
        x: (B, N, C) pixels.
        filters: (L, C), W_A transposed, shared by the batch; or (B, L, C), one bank W_R per sample.
        scale: multiplies the logits; the paper's second version has none, its first 1 / sqrt(C).

    Returns:
        A (B, N, L); over the N pixels the weights of each token sum to 1.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> x = torch.tensor([[[0.0], [1.0]]])  # two pixels of one channel
        >>> spatial_attention(x, torch.tensor([[0.0]])).tolist()
        [[[0.5], [0.5]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    check_rows("filters", filters, x.shape[0], L=None, C=x.shape[2])
    return torch.softmax(scale * (x @ filters.transpose(-2, -1)), dim=1)


def gather(
    attention: Tensor,
    x: Tensor,
    *,
    value: Projection | None = None,
    extra_values: Tensor | None = None,
    token: Projection | None = None,
) -> Tensor:
    """Pool the pixels into tokens: T = A^T (X W_V), [A^T E] appended, then a linear map to CT channels.

    Args:
        attention: A (B, N, L).
        x: (B, N, C) pixels.
        value: C -> Cv on the pixels, a (grouped) 1x1 convolution; None leaves them as they are.
        extra_values: E (N, P), numbers for each pixel, row-major over H and W, such as a position code; None
            appends nothing.
        token: Cv + P -> CT on the tokens; None leaves them as they are.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> attention = torch.tensor([[[1.0], [0.0]]])  # one token that looks at the first of two pixels
        >>> x = torch.tensor([[[3.0], [4.0]]])
        >>> gather(attention, x, extra_values=torch.tensor([[7.0], [8.0]])).tolist()
        [[[3.0, 7.0]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    check_shape("attention", attention, B=x.shape[0], N=x.shape[1], L=None)
    weights = attention.transpose(1, 2)
    tokens = weights @ (x if value is None else linear(x, value))
    if extra_values is not None:
        check_shape("extra_values", extra_values, N=x.shape[1], P=None)
        tokens = torch.cat((tokens, weights @ extra_values), dim=-1)
    return tokens if token is None else linear(tokens, token)


def filter_tokenizer(
    x: Tensor,
    filters: Tensor,
    *,
    scale: float = 1.0,
    value: Projection | None = None,
    extra_values: Tensor | None = None,
    token: Projection | None = None,
) -> Tensor:
    """Filter-based tokenizer, equation 1: T = softmax_N(X W_A)^T X.

    The equation itself has no scale, no value projection, no position code and no token projection: the
    paper's first version and its models have them.

    Args:
        x: (B, N, C) pixels.
        filters: W_A transposed, (L, C), or (B, L, C).
        scale: multiplies the logits.
        value: C -> Cv on the pixels.
        extra_values: E (N, P), pooled with the same weights and appended.
        token: Cv + P -> CT on the tokens.

    Returns:
        tokens (B, L, CT), CT = C without projections.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
        >>> filter_tokenizer(x, torch.zeros(1, 2)).tolist()  # equal weights: the mean pixel
        [[[2.0, 0.0]]]
    """
    attention = spatial_attention(x, filters, scale=scale)
    return gather(attention, x, value=value, extra_values=extra_values, token=token)


def token_filters(tokens: Tensor, query: Projection) -> Tensor:
    """Turn tokens into filters: W_R = T_in W_{T->R}, the first half of equation 2.

    Args:
        tokens: T_in (B, L, CT), the previous module's.
        query: W_{T->R}, CT -> C.

    Returns:
        W_R (B, L, C), one filter bank per sample.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> token_filters(torch.ones(1, 2, 3), Projection(torch.ones(1, 3))).tolist()
        [[[3.0], [3.0]]]
    """
    check_shape("tokens", tokens, B=None, L=None, CT=None)
    return linear(tokens, query)


def recurrent_tokenizer(
    x: Tensor,
    tokens: Tensor,
    query: Projection,
    *,
    key: Projection | None = None,
    scale: float = 1.0,
    value: Projection | None = None,
    extra_values: Tensor | None = None,
    token: Projection | None = None,
) -> Tensor:
    """Recurrent tokenizer, equation 2: W_R = T_in W_{T->R}, T = softmax_N(X W_R^T)^T X.

    With a key projection, which the paper's counts include and its equation leaves out, the logits are
    (X W_key + b) W_R^T.

    Args:
        x: (B, N, C) pixels.
        tokens: T_in (B, L, CT), the previous module's.
        query: W_{T->R}, CT -> C, or to the width of the keys.
        key: C -> width of W_R on the pixels; None compares the pixels themselves.
        scale: multiplies the logits.
        value: C -> Cv on the pixels.
        extra_values: E (N, P), pooled with the same weights and appended.
        token: Cv + P -> CT on the tokens.

    Returns:
        tokens (B, L, CT).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> x = torch.tensor([[[1.0], [3.0]]])
        >>> recurrent_tokenizer(x, torch.zeros(1, 1, 5), Projection(torch.ones(1, 5))).tolist()
        [[[2.0]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    check_shape("tokens", tokens, B=x.shape[0], L=None, CT=None)
    keys = x if key is None else linear(x, key)
    attention = spatial_attention(keys, token_filters(tokens, query), scale=scale)
    return gather(attention, x, value=value, extra_values=extra_values, token=token)


def pooling_tokenizer(
    feature_map: Tensor,
    grid: tuple[int, int],
    *,
    value: Projection | None = None,
    token: Projection | None = None,
) -> Tensor:
    """Pooling tokenizer of the paper's ablation: the map, resized bilinearly to L pixels, is the tokens.

    The value projection acts on the map, before the resize. The resize is PyTorch's: pixel centres aligned,
    not corners, and no antialiasing; the paper says no more than bilinear.

    Args:
        feature_map: (B, C, H, W).
        grid: (h, w), L = h w tokens; the paper's L = 16 is (4, 4).
        value: C -> Cv on the pixels.
        token: Cv -> CT on the tokens.

    Returns:
        tokens (B, h w, CT), row-major over the grid.

    Raises:
        ValueError: the shapes do not fit, or the grid is not positive.

    Example:
        >>> pooling_tokenizer(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]), (1, 1)).tolist()
        [[[4.0]]]
    """
    check_shape("feature_map", feature_map, B=None, C=None, H=None, W=None)
    height, width = grid
    check_count("grid[0]", height)
    check_count("grid[1]", width)
    if value is not None:
        feature_map = linear(feature_map.permute(0, 2, 3, 1), value).permute(0, 3, 1, 2)
    pooled = F.interpolate(feature_map, size=(height, width), mode="bilinear", align_corners=False)
    tokens = pooled.flatten(2).transpose(1, 2)
    return tokens if token is None else linear(tokens, token)

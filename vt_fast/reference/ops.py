"""The definitions of the three ops of :mod:`vt_fast.functional`, in plain differentiable PyTorch.

They take the same arguments as the fused ops, without ``backend``, and can be differentiated any number of
times. They save every intermediate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.reference._checks import check_divides, check_rows, check_shape

__all__ = ["project", "project_tokenize", "tokenize"]


def tokenize(
    x: Tensor,
    queries: Tensor,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    mask: Tensor | None = None,
    pixel_bias: Tensor | None = None,
    extra_values: Tensor | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pool pixels into tokens: ``T = softmax_N(X Q^T)^T X``, head by head.

    Shapes are those of :func:`vt_fast.functional.tokenize`.

    Example:
        >>> import torch
        >>> x, queries = torch.zeros(2, 49, 8), torch.zeros(4, 8)
        >>> tokenize(x, queries).shape
        torch.Size([2, 4, 8])
    """
    pixels = _pixels("x", x)
    batch, count, channels = pixels.shape
    check_divides("num_heads", num_heads, "the channels of `x`", channels)
    check_rows("queries", queries, batch, **{"num_heads * L": None, "C / num_heads": channels // num_heads})
    check_divides("num_heads", num_heads, "the rows of `queries`", queries.shape[-2])
    if extra_values is not None:
        check_shape("extra_values", extra_values, N=count, P=None)
        if num_heads != 1:
            raise ValueError(f"`num_heads` must be 1 where `extra_values` is given, got {num_heads}")
    valid = _valid_pixels(x, mask, pixel_bias)
    pixels = torch.where(valid[..., None], pixels, 0)
    blocks = pixels.unflatten(2, (num_heads, channels // num_heads))
    rows = queries.unflatten(-2, (num_heads, -1)).expand(batch, -1, -1, -1)
    logits = scale * torch.einsum("bnhc,bhlc->bhln", blocks, rows)
    if pixel_bias is not None:
        finite = torch.where(valid, pixel_bias.reshape(valid.shape), 0)
        logits = logits + finite[:, None, None, :]
    # A sample without a valid pixel gets logits of 0, and its results are replaced below. So the graph has no
    # -inf - -inf, and the sample's gradients are exactly 0.
    some = valid.any(1)
    logits = torch.where((valid | ~some[:, None])[:, None, None, :], logits, -torch.inf)
    attention = torch.softmax(logits, -1).to(x.dtype)
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    lse = torch.logsumexp(logits.to(exact), -1).flatten(1)
    tokens = torch.einsum("bhln,bnhc->blhc", attention, blocks).flatten(2)
    if extra_values is not None:
        table = torch.where(valid[..., None], extra_values, 0)
        tokens = torch.cat([tokens, attention[:, 0] @ table], -1)
    tokens = torch.where(some[:, None, None], tokens, 0)
    lse = torch.where(some[:, None], lse, -torch.inf)
    return (tokens, lse) if return_stats else tokens


def project(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Spread tokens over pixels: ``Y = R + softmax_L(X K^T + b) V``, head by head.

    Shapes are those of :func:`vt_fast.functional.project`.

    Example:
        >>> import torch
        >>> x, tokens = torch.ones(2, 8, 7, 7), torch.zeros(2, 4, 8)
        >>> project(x, tokens, tokens).shape
        torch.Size([2, 8, 7, 7])
    """
    pixels = _pixels("x", x)
    batch, count, channels = pixels.shape
    check_rows("keys", keys, batch, **{"num_heads * L": None, "C": channels})
    check_divides("num_heads", num_heads, "the rows of `keys`", keys.shape[-2])
    check_rows("values", values, batch, L=keys.shape[-2] // num_heads, D=None)
    check_divides("num_heads", num_heads, "the channels of `values`", values.shape[-1])
    if token_bias is not None:
        check_rows("token_bias", token_bias, batch, **{"num_heads * L": keys.shape[-2]})
    if residual is not None:
        added = _pixels("residual", residual)
        check_shape("the pixels of `residual`", added, B=batch, N=count, D=values.shape[-1])
    keys = keys.unflatten(-2, (num_heads, -1))
    values = values.unflatten(-1, (num_heads, -1))
    if token_bias is not None:
        token_bias = token_bias.unflatten(-1, (num_heads, -1))
        removed = token_bias == -torch.inf
        # (.., heads, L) -> (.., L, heads, 1), the rows of each channel block of the values
        removed_values = removed.transpose(-1, -2)[..., None]
        keys = torch.where(removed[..., None], 0, keys)
        values = torch.where(removed_values, 0, values)
    keys = keys.expand(batch, -1, -1, -1)
    values = values.expand(batch, -1, -1, -1)
    logits = scale * torch.einsum("bnc,bhlc->bhnl", pixels, keys)
    if token_bias is not None:
        removed = removed.expand(batch, -1, -1)[:, :, None, :]
        some = ~removed.all(-1, keepdim=True)
        logits = (
            logits + torch.where(token_bias == -torch.inf, 0, token_bias).expand(batch, -1, -1)[:, :, None, :]
        )
        logits = torch.where(removed & some, -torch.inf, logits)
        attention = torch.where(some, torch.softmax(logits, -1), 0).to(x.dtype)
    else:
        attention = torch.softmax(logits, -1)
    out = torch.einsum("bhnl,blhd->bnhd", attention, values).flatten(2)
    if residual is not None:
        out = out + added
    return out if x.dim() == 3 else out.transpose(1, 2).unflatten(2, x.shape[2:])


def project_tokenize(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    residual: Tensor | None = None,
    query_scale: float = 1.0,
    mask: Tensor | None = None,
    pixel_bias: Tensor | None = None,
    extra_values: Tensor | None = None,
    return_map: bool = True,
    return_stats: bool = False,
) -> tuple[Tensor | None, Tensor] | tuple[Tensor | None, Tensor, Tensor]:
    """``Y = project(x, keys, values)`` and ``tokenize(Y, queries)``: the map and its tokens.

    Shapes are those of :func:`vt_fast.functional.project_tokenize`.

    Example:
        >>> import torch
        >>> x, tokens = torch.ones(2, 8, 7, 7), torch.zeros(2, 4, 8)
        >>> y, pooled = project_tokenize(x, tokens, tokens, torch.zeros(5, 8), residual=x)
        >>> y.shape, pooled.shape
        (torch.Size([2, 8, 7, 7]), torch.Size([2, 5, 8]))
    """
    if not return_map:
        # Without the map a masked pixel is not used at all, not even by the projection.
        valid = _valid_pixels(x, mask, pixel_bias)
        x = _keep(x, valid)
        residual = None if residual is None else _keep(residual, valid)
    y = project(x, keys, values, num_heads=num_heads, scale=scale, token_bias=token_bias, residual=residual)
    tokens, lse = tokenize(
        y,
        queries,
        scale=query_scale,
        mask=mask,
        pixel_bias=pixel_bias,
        extra_values=extra_values,
        return_stats=True,
    )
    returned = y if return_map else None
    return (returned, tokens, lse) if return_stats else (returned, tokens)


def _pixels(name: str, feature_map: Tensor) -> Tensor:
    """(B, N, C) of a map in either form."""
    if feature_map.dim() == 3:
        return feature_map
    if feature_map.dim() != 4:
        shape = tuple(feature_map.shape)
        raise ValueError(f"`{name}` must be (B, N, C) or (B, C, H, W), got {shape}")
    return feature_map.flatten(2).transpose(1, 2)


def _keep(feature_map: Tensor, valid: Tensor) -> Tensor:
    """The map with 0 in the pixels that are not ``valid`` (B, N)."""
    if feature_map.dim() == 3:
        return torch.where(valid[..., None], feature_map, 0)
    return torch.where(valid.unflatten(1, feature_map.shape[2:])[:, None], feature_map, 0)


def _valid_pixels(x: Tensor, mask: Tensor | None, pixel_bias: Tensor | None) -> Tensor:
    """(B, N) bool: neither masked nor given a bias of -inf."""
    pixels = _pixels("x", x)
    valid = torch.ones(pixels.shape[:2], dtype=torch.bool, device=x.device)
    if mask is not None:
        valid = valid & _per_pixel("mask", mask, x)
    if pixel_bias is not None:
        valid = valid & (_per_pixel("pixel_bias", pixel_bias, x) != -torch.inf)
    return valid


def _per_pixel(name: str, value: Tensor, x: Tensor) -> Tensor:
    """(B, N) of what is given as (B, N) or, for a 4-D map, as (B, H, W)."""
    if x.dim() == 4 and value.dim() == 3:
        check_shape(name, value, B=x.shape[0], H=x.shape[2], W=x.shape[3])
        return value.flatten(1)
    batch, count, _ = _pixels("x", x).shape
    check_shape(name, value, B=batch, N=count)
    return value

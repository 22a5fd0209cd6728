"""The meaning of the three ops of :mod:`vt_fast.functional`, in plain differentiable PyTorch.

These are the definitions: they save every intermediate, can be differentiated as often as wanted,
and take the same arguments as the fused ops, without ``backend``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vt_fast import arguments, checks
from vt_fast.precision import compute_dtype

__all__ = ["project", "project_tokenize", "tokenize"]


def tokenize(
    x: Tensor,
    queries: Tensor,
    *,
    heads: int = 1,
    mask: Tensor | None = None,
    log_weights: Tensor | None = None,
    position: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pool pixels into tokens: ``T = softmax_N(X Q^T)^T X``, head by head.

    Shapes and errors are those of :func:`vt_fast.functional.tokenize`.

    Example:
        >>> import torch
        >>> x, queries = torch.zeros(2, 49, 8), torch.zeros(4, 8)
        >>> tokenize(x, queries).shape
        torch.Size([2, 4, 8])
    """
    checks.feature_map("x", x)
    arguments.tokenize(x, queries, heads, mask, log_weights, position)
    checks.flag("return_lse", return_lse)
    pixels = _pixels(x)
    batch, _, channels = pixels.shape
    valid = _valid_pixels(pixels, mask, log_weights)
    pixels = torch.where(valid[..., None], pixels, 0)
    blocks = pixels.unflatten(2, (heads, channels // heads))
    rows = queries.unflatten(-2, (heads, -1)).expand(batch, -1, -1, -1)
    logits = torch.einsum("bnhc,bhlc->bhln", blocks, rows)
    if log_weights is not None:
        finite = torch.where(valid, log_weights.reshape(valid.shape), 0)
        logits = logits + finite[:, None, None, :]
    # A sample without any valid pixel takes part with logits of 0, and its results are replaced:
    # so no -inf - -inf enters the graph and its gradients are exactly 0.
    some = valid.any(1)
    logits = torch.where((valid | ~some[:, None])[:, None, None, :], logits, -torch.inf)
    attention = torch.softmax(logits, -1)
    lse = torch.logsumexp(logits.to(compute_dtype(x.dtype)), -1).flatten(1)
    tokens = torch.einsum("bhln,bnhc->blhc", attention, blocks).flatten(2)
    if position is not None:
        table = torch.where(valid[..., None], position, 0)
        tokens = torch.cat([tokens, attention[:, 0] @ table], -1)
    tokens = torch.where(some[:, None, None], tokens, 0)
    lse = torch.where(some[:, None], lse, -torch.inf)
    return (tokens, lse) if return_lse else tokens


def project(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    heads: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | Literal["input"] | None = "input",
) -> Tensor:
    """Spread tokens over pixels: ``Y = R + softmax_L(X K^T + b) V``, head by head.

    Shapes and errors are those of :func:`vt_fast.functional.project`.

    Example:
        >>> import torch
        >>> x, tokens = torch.ones(2, 8, 7, 7), torch.zeros(2, 4, 8)
        >>> project(x, tokens, tokens).shape
        torch.Size([2, 8, 7, 7])
    """
    checks.feature_map("x", x)
    arguments.project(x, keys, values, heads, bias, residual)
    pixels = _pixels(x)
    keys = keys.unflatten(-2, (heads, -1))
    values = values.unflatten(-1, (heads, -1))
    if bias is not None:
        bias = bias.unflatten(-1, (heads, -1))
        removed = bias == -torch.inf
        # (.., heads, L) -> (.., L, heads, 1), the rows of each channel block of the values
        removed_values = removed.transpose(-1, -2)[..., None]
        keys = torch.where(removed[..., None], 0, keys)
        values = torch.where(removed_values, 0, values)
    batch = pixels.shape[0]
    keys = keys.expand(batch, -1, -1, -1)
    values = values.expand(batch, -1, -1, -1)
    logits = torch.einsum("bnc,bhlc->bhnl", pixels, keys)
    if bias is not None:
        removed = removed.expand(batch, -1, -1)[:, :, None, :]
        some = ~removed.all(-1, keepdim=True)
        logits = logits + torch.where(bias == -torch.inf, 0, bias).expand(batch, -1, -1)[:, :, None, :]
        logits = torch.where(removed & some, -torch.inf, logits)
        attention = torch.where(some, torch.softmax(logits, -1), 0)
    else:
        attention = torch.softmax(logits, -1)
    out = torch.einsum("bhnl,blhd->bnhd", attention, values).flatten(2)
    if isinstance(residual, Tensor):
        out = out + _pixels(residual)
    elif residual == "input":
        out = out + pixels
    return out if x.dim() == 3 else out.transpose(1, 2).unflatten(2, x.shape[2:])


def project_tokenize(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    heads: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | Literal["input"] | None = "input",
    mask: Tensor | None = None,
    log_weights: Tensor | None = None,
    position: Tensor | None = None,
    return_map: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``Y = project(x, keys, values)`` and ``tokenize(Y, queries)``: the map, its tokens and their lse.

    Shapes and errors are those of :func:`vt_fast.functional.project_tokenize`.

    Example:
        >>> import torch
        >>> x, tokens = torch.ones(2, 8, 7, 7), torch.zeros(2, 4, 8)
        >>> y, pooled, lse = project_tokenize(x, tokens, tokens, torch.zeros(5, 8))
        >>> y.shape, pooled.shape, lse.shape
        (torch.Size([2, 8, 7, 7]), torch.Size([2, 5, 8]), torch.Size([2, 5]))
    """
    checks.feature_map("x", x)
    arguments.project_tokenize(x, keys, values, queries, heads, bias, residual, mask, log_weights, position)
    checks.flag("return_map", return_map)
    if not return_map:
        # Nobody sees the map, so a masked pixel is not used at all, not even by the projection.
        valid = _valid_pixels(_pixels(x), mask, log_weights)
        x = _keep(x, valid)
        residual = _keep(residual, valid) if isinstance(residual, Tensor) else residual
    y = project(x, keys, values, heads=heads, bias=bias, residual=residual)
    tokens, lse = tokenize(y, queries, mask=mask, log_weights=log_weights, position=position, return_lse=True)
    return (y if return_map else None), tokens, lse


def _pixels(feature_map: Tensor) -> Tensor:
    """(B, N, C) of a map in either form."""
    return feature_map if feature_map.dim() == 3 else feature_map.flatten(2).transpose(1, 2)


def _keep(feature_map: Tensor, valid: Tensor) -> Tensor:
    """The map with 0 in the pixels that are not ``valid`` (B, N)."""
    if feature_map.dim() == 3:
        return torch.where(valid[..., None], feature_map, 0)
    return torch.where(valid.unflatten(1, feature_map.shape[2:])[:, None], feature_map, 0)


def _valid_pixels(pixels: Tensor, mask: Tensor | None, log_weights: Tensor | None) -> Tensor:
    """(B, N) bool: neither masked nor given a log weight of -inf."""
    valid = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
    if mask is not None:
        valid = valid & mask.flatten(1)
    if log_weights is not None:
        valid = valid & (log_weights.flatten(1) != -torch.inf)
    return valid

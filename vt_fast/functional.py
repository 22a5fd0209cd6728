"""The public ops: check the arguments, choose a backend, call the op.

A feature map ``x`` is (B, N, C), or (B, C, H, W) in any memory format, whose pixels are then numbered
row-major. No op works in place, none scales the logits (put a scale into queries or keys), and none
has dropout, which would break the exact folds of :mod:`vt_fast.nn`.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from vt_fast import arguments, backends, checks
from vt_fast.backends.contract import Project, ProjectTokenize, Tokenize
from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE
from vt_fast.precision import autocast

__all__ = ["merge", "project", "project_tokenize", "tokenize"]


@overload
def tokenize(
    x: Tensor,
    queries: Tensor,
    *,
    heads: int = ...,
    mask: Tensor | None = ...,
    log_weights: Tensor | None = ...,
    position: Tensor | None = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def tokenize(
    x: Tensor,
    queries: Tensor,
    *,
    heads: int = ...,
    mask: Tensor | None = ...,
    log_weights: Tensor | None = ...,
    position: Tensor | None = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def tokenize(
    x: Tensor,
    queries: Tensor,
    *,
    heads: int = 1,
    mask: Tensor | None = None,
    log_weights: Tensor | None = None,
    position: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pool pixels into tokens: ``T = softmax_N(X Q^T)^T X`` (the paper's eqs. 1 and 2).

    Args:
        x: feature map (B, N, C) or (B, C, H, W); float16, bfloat16, float32 or float64.
        queries: (L, C), shared, or (B, L, C), in x's dtype. With ``heads``: (.., heads * L, C / heads),
            head-major; head h sees and pools channel block h of the pixels alone.
        heads: how many channel blocks have weights of their own.
        mask: (B, N) or (B, H, W) bool, True where a pixel takes part. A masked pixel is never used,
            even if it is NaN or inf, and gets a gradient of 0.
        log_weights: (B, N) or (B, H, W), added to each token's logit of that pixel; differentiable.
            -inf masks the pixel.
        position: (N, P), a table shared by the batch. Its rows, pooled with the same weights, are
            appended to the tokens. One head only.
        return_lse: also return the logits' log-sum-exp over the pixels, as :func:`merge` takes it.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        tokens (B, L, C + P) in x's dtype, block h pooled with head h's weights; and, if asked for,
        lse (B, heads * L), a natural logarithm in float32 (float64 for float64), differentiable. A sample
        whose pixels are all masked has tokens of 0 and lse of -inf.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device, or a backend that is unknown or refuses the call.
        RuntimeError: the backend asked for cannot run here.

    Example:
        >>> import torch, vt_fast
        >>> x = torch.randn(2, 64, 14, 14, requires_grad=True)
        >>> tokens, lse = vt_fast.tokenize(x, torch.randn(16, 64), return_lse=True)
        >>> tokens.shape, lse.shape
        (torch.Size([2, 16, 64]), torch.Size([2, 16]))
    """
    checks.feature_map("x", x)
    x, queries, log_weights, position = autocast(x, queries, log_weights, position)
    arguments.tokenize(x, queries, heads, mask, log_weights, position)
    checks.flag("return_lse", return_lse)
    keep_exact = _needs_gradient(x, queries, log_weights, position)
    call = Tokenize(x, queries, mask, log_weights, position, heads, keep_exact, "")
    tokens, _, lse = TOKENIZE(*call[:-1], backends.choose(backend, call))
    return (tokens, lse) if return_lse else tokens


def project(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    heads: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | Literal["input"] | None = "input",
    backend: str | None = None,
) -> Tensor:
    """Spread tokens over pixels: ``Y = R + softmax_L(X K^T + b) V`` (the paper's eq. 5).

    Args:
        x: feature map (B, N, C) or (B, C, H, W); float16, bfloat16, float32 or float64.
        keys: (heads * L, C), shared, or (B, heads * L, C): head-major rows of full width, in x's dtype.
        values: (L, D) or (B, L, D). Head h writes channels [h D / heads, (h + 1) D / heads).
        heads: how many blocks of output channels have weights of their own.
        bias: (heads * L,) or (B, heads * L), added to each pixel's logit of that token. -inf removes
            the token, even if it holds NaN; where a head's are all -inf, it adds 0.
        residual: "input" adds x (D must be C); a map (B, N, D) or (B, D, H, W), in any strides, adds
            that map; None adds nothing.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        A map (B, N, D) or (B, D, H, W), as x is, in x's dtype, strided as ``torch.empty_like(x)``.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device, or a backend that is unknown or refuses the call.
        RuntimeError: the backend asked for cannot run here.

    Example:
        >>> import torch, vt_fast
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 64)
        >>> vt_fast.project(x, keys=tokens, values=tokens).shape
        torch.Size([2, 64, 14, 14])
    """
    checks.feature_map("x", x)
    skip = residual if isinstance(residual, Tensor) else None
    x, keys, values, bias, skip = autocast(x, keys, values, bias, skip)
    arguments.project(x, keys, values, heads, bias, residual if skip is None else skip)
    call = Project(x, keys, values, bias, skip, isinstance(residual, str), heads, "")
    out: Tensor = PROJECT(*call[:-1], backends.choose(backend, call))
    return out


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
    backend: str | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """``Y = project(x, keys, values)`` and ``tokenize(Y, queries)`` in one pass over the map.

    A backend may tokenize the map before or after it is rounded to x's dtype.

    Args:
        x: as in :func:`project`, and so are ``keys``, ``values``, ``heads``, ``bias``, ``residual``.
        keys: see above.
        values: see above.
        queries: (Lq, D) or (B, Lq, D), for the map Y; Lq need not be the number of values.
        heads: see above; the tokenizing half has one head.
        bias: see above.
        residual: see above.
        mask: as in :func:`tokenize`, of the pixels of Y; and so are ``log_weights`` and ``position``.
            With ``return_map=False`` a masked pixel of x is not used at all; otherwise the map is
            computed there too, and the pixel counts in the backward only if a gradient arrives at it.
        log_weights: see above.
        position: see above.
        return_map: whether Y is wanted. If not, it is never written.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        Y or None, tokens (B, Lq, D + P), lse (B, Lq).

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device, or a backend that is unknown or refuses the call.
        RuntimeError: the backend asked for cannot run here.

    Example:
        >>> import torch, vt_fast
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 64)
        >>> y, pooled, lse = vt_fast.project_tokenize(x, tokens, tokens, queries=torch.randn(8, 64))
        >>> y.shape, pooled.shape, lse.shape
        (torch.Size([2, 64, 14, 14]), torch.Size([2, 8, 64]), torch.Size([2, 8]))
    """
    checks.feature_map("x", x)
    skip = residual if isinstance(residual, Tensor) else None
    operands = autocast(x, keys, values, queries, bias, skip, log_weights, position)
    x, keys, values, queries, bias, skip, log_weights, position = operands
    arguments.project_tokenize(
        x,
        keys,
        values,
        queries,
        heads,
        bias,
        residual if skip is None else skip,
        mask,
        log_weights,
        position,
    )
    checks.flag("return_map", return_map)
    call = ProjectTokenize(
        x,
        keys,
        values,
        queries,
        bias,
        skip,
        mask,
        log_weights,
        position,
        residual_input=isinstance(residual, str),
        heads=heads,
        return_map=return_map,
        keep_exact=_needs_gradient(*operands),
        backend="",
    )
    y, tokens, _, lse = PROJECT_TOKENIZE(*call[:-1], backends.choose(backend, call))
    return (y if return_map else None), tokens, lse


def merge(tokens: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Put together what :func:`tokenize` gave for S disjoint sets of pixels.

    ``lse = log sum_s exp(lse_s)`` and ``tokens = sum_s exp(lse_s - lse) tokens_s``: exactly the tokens of
    all pixels at once. Differentiable as often as wanted. Plain PyTorch: these tensors are small.

    Args:
        tokens: (S, B, L, C), floating point.
        lse: (S, B, L), or (S, B, heads * L), in float32 (float64 for float64 tokens); -inf for an empty
            set.

    Returns:
        tokens (B, L, C) in the same dtype and lse (B, L) or (B, heads * L); 0 and -inf where all are empty.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device.

    Example:
        >>> import torch, vt_fast
        >>> x, queries = torch.randn(1, 100, 8), torch.randn(4, 8)
        >>> parts = [vt_fast.tokenize(part, queries, return_lse=True) for part in x.split(30, dim=1)]
        >>> tokens, lse = vt_fast.merge(*map(torch.stack, zip(*parts)))
        >>> torch.allclose(tokens, vt_fast.tokenize(x, queries), atol=1e-5)
        True
    """
    arguments.merge(tokens, lse)
    heads = lse.shape[2] // tokens.shape[2]
    highest = lse.detach().amax(0)
    highest = torch.where(highest == -torch.inf, 0, highest)
    weights = torch.exp(lse - highest)
    total = weights.sum(0)
    # log and division see 1 in place of 0, so that an empty result has gradients of 0, not NaN.
    positive = torch.where(total == 0, 1, total)
    merged_lse = torch.where(total == 0, -torch.inf, torch.log(positive) + highest)
    merged_lse = torch.where(highest == torch.inf, highest, merged_lse)  # not inf - inf
    shares = (weights / positive).unflatten(-1, (heads, -1)).transpose(-1, -2)[..., None]
    empty = (lse == -torch.inf).unflatten(-1, (heads, -1)).transpose(-1, -2)[..., None]
    blocks = tokens.to(lse.dtype).unflatten(-1, (heads, -1))
    blocks = torch.where(empty, 0, blocks)  # whatever an empty set's tokens are
    return (shares * blocks).sum(0).flatten(-2).to(tokens.dtype), merged_lse


def _needs_gradient(*operands: Tensor | None) -> bool:
    # A trace must not depend on whether gradients are enabled while it is made.
    if is_tracing():
        return True
    return torch.is_grad_enabled() and any(
        operand is not None and operand.requires_grad for operand in operands
    )

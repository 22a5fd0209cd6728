"""The public ops: scale and cast the operands, call the op, and explain what is wrong where it refuses.

A feature map ``x`` is (B, N, C), or (B, C, H, W) in any memory format, whose pixels are then numbered
row-major. Rows of several heads are head-major: rows h L to (h + 1) L belong to head h. No op works in
place, and none has dropout, which would break the exact folds of :mod:`vt_fast.nn`.

The logits are ``S = scale * (x rows^T) + bias``. ``scale`` is a number without a gradient. It multiplies the
rows, not the map, before autocast casts them: unless it is a power of two, 16-bit rows are rounded once more.
Scaled rows must lie in the range of their dtype.

x, rows, values, ``extra_values`` and ``residual`` share one dtype; under autocast they are cast to its
dtype. ``token_bias`` and ``pixel_bias`` may have x's dtype or float32 (float64 for float64). They are never
rounded to x's dtype, also not under autocast, and get their gradients in their own dtype.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from vt_fast import checks
from vt_fast.backends.contract import Project, ProjectTokenize, Tokenize
from vt_fast.layout import unflatten
from vt_fast.onnx import algebra
from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE
from vt_fast.ops.library import plain_eager
from vt_fast.precision import any_autocast, autocast

__all__ = ["merge", "project", "project_tokenize", "tokenize"]


@overload
def tokenize(
    x: Tensor,
    queries: Tensor,
    *,
    num_heads: int = ...,
    scale: float = ...,
    mask: Tensor | None = ...,
    pixel_bias: Tensor | None = ...,
    extra_values: Tensor | None = ...,
    return_stats: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def tokenize(
    x: Tensor,
    queries: Tensor,
    *,
    num_heads: int = ...,
    scale: float = ...,
    mask: Tensor | None = ...,
    pixel_bias: Tensor | None = ...,
    extra_values: Tensor | None = ...,
    return_stats: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pool pixels into tokens: ``T = softmax_N(X Q^T)^T X`` (the paper's eqs. 1 and 2).

    Args:
        x: feature map (B, N, C) or (B, C, H, W); float16, bfloat16, float32 or float64.
        queries: (L, C), shared, or (B, L, C), in x's dtype. With several heads (.., num_heads * L, C /
            num_heads): head h sees and pools channel block h of the pixels alone.
        num_heads: how many channel blocks have weights of their own; must divide C.
        scale: multiplies the logits.
        mask: (B, N) or (B, H, W) bool, True where a pixel takes part. A masked pixel is never used,
            even if it is NaN or inf, and gets a gradient of 0.
        pixel_bias: (B, N) or (B, H, W), added to each token's logit of that pixel; differentiable.
            -inf masks the pixel.
        extra_values: (N, P), a table shared by the batch, in x's dtype. Its rows are pooled with the same
            weights and appended to the tokens; a position code is one use. One head only.
        return_stats: also return the log-sum-exp of the logits over the pixels, as :func:`merge` takes it.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        tokens (B, L, C + P) in x's dtype, block h pooled with head h's weights; with ``return_stats`` also
        lse (B, num_heads * L), a natural logarithm in float32 (float64 for float64), differentiable. A
        sample whose pixels are all masked has tokens of 0 and lse of -inf.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device, or a backend that is unknown or refuses the call.
        RuntimeError: the backend asked for cannot run here.

    Example:
        >>> import torch, vt_fast
        >>> x = torch.randn(2, 64, 14, 14, requires_grad=True)
        >>> tokens, lse = vt_fast.tokenize(x, torch.randn(16, 64), return_stats=True)
        >>> tokens.shape, lse.shape
        (torch.Size([2, 16, 64]), torch.Size([2, 16]))
    """
    plain = plain_eager()
    queries = _scaled("scale", scale, queries)
    if not plain or any_autocast() or type(num_heads) is not int or type(return_stats) is not bool:
        checks.feature_map("x", x)
        checks.flag("return_stats", return_stats)
        x, queries, extra_values = autocast(x, queries, extra_values)
        call = Tokenize(x, queries, mask, pixel_bias, extra_values, num_heads, keep_exact=False)
        TOKENIZE.check(call, backend)
        if algebra.exporting():
            tokens, lse = algebra.tokenize(call)
            return (tokens, lse) if return_stats else tokens
    operands = (x, queries, mask, pixel_bias, extra_values, num_heads)
    try:
        differentiable = _needs_gradient(plain, x, queries, pixel_bias, extra_values)
        keep_exact = differentiable or not isinstance(x, Tensor)
        tokens, _, lse = TOKENIZE(
            (*operands, keep_exact), backend, plain=plain, differentiable=differentiable
        )
    except Exception as error:
        TOKENIZE.explain(error, (*operands, False), backend)
        raise
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
    backend: str | None = None,
) -> Tensor:
    """Spread tokens over pixels: ``Y = R + softmax_L(X K^T + b) V`` (the paper's eq. 5).

    Args:
        x: feature map (B, N, C) or (B, C, H, W); float16, bfloat16, float32 or float64.
        keys: (num_heads * L, C), shared, or (B, num_heads * L, C): rows of full width, in x's dtype.
        values: (L, D) or (B, L, D). Head h writes channels [h D / num_heads, (h + 1) D / num_heads).
        num_heads: how many blocks of output channels have weights of their own; must divide D.
        scale: multiplies the logits, before the bias is added.
        token_bias: (num_heads * L,) or (B, num_heads * L), added to each pixel's logit of that token;
            differentiable. -inf removes the token, even if it holds NaN; where all of a head's are -inf, the
            head adds 0.
        residual: R, a map (B, N, D) or (B, D, H, W) in any strides, or None. Passing ``x`` itself (the same
            object, with D = C) costs no second read of the map.
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
        >>> vt_fast.project(x, keys=tokens, values=tokens, residual=x).shape
        torch.Size([2, 64, 14, 14])
    """
    plain = plain_eager()
    # By identity, before anything makes a new tensor of either: compilers hand an op two tensors for one.
    residual_is_input = residual is x
    other = None if residual_is_input else residual
    keys = _scaled("scale", scale, keys)
    if not plain or any_autocast() or type(num_heads) is not int:
        checks.feature_map("x", x)
        x, keys, values, other = autocast(x, keys, values, other)
        record = Project(x, keys, values, token_bias, other, residual_is_input, num_heads)
        PROJECT.check(record, backend)
        if algebra.exporting():
            return algebra.project(record)
    call = (x, keys, values, token_bias, other, residual_is_input, num_heads)
    try:
        differentiable = _needs_gradient(plain, x, keys, values, token_bias, other)
        out: Tensor = PROJECT(call, backend, plain=plain, differentiable=differentiable)
    except Exception as error:
        PROJECT.explain(error, call, backend)
        raise
    return out


@overload
def project_tokenize(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    num_heads: int = ...,
    scale: float = ...,
    token_bias: Tensor | None = ...,
    residual: Tensor | None = ...,
    query_scale: float = ...,
    mask: Tensor | None = ...,
    pixel_bias: Tensor | None = ...,
    extra_values: Tensor | None = ...,
    return_map: bool = ...,
    return_stats: Literal[False] = ...,
    backend: str | None = ...,
) -> tuple[Tensor | None, Tensor]: ...


@overload
def project_tokenize(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    num_heads: int = ...,
    scale: float = ...,
    token_bias: Tensor | None = ...,
    residual: Tensor | None = ...,
    query_scale: float = ...,
    mask: Tensor | None = ...,
    pixel_bias: Tensor | None = ...,
    extra_values: Tensor | None = ...,
    return_map: bool = ...,
    return_stats: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor | None, Tensor, Tensor]: ...


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
    backend: str | None = None,
) -> tuple[Tensor | None, Tensor] | tuple[Tensor | None, Tensor, Tensor]:
    """``Y = project(x, keys, values)`` and ``tokenize(Y, queries)`` in one pass over the map.

    A backend may tokenize the map before or after it is rounded to x's dtype.

    Args:
        x: as in :func:`project`.
        keys: as in :func:`project`.
        values: as in :func:`project`.
        queries: (Lq, D) or (B, Lq, D), for the map Y; Lq is independent of the number of values.
        num_heads: as in :func:`project`; the tokenize half has one head.
        scale: multiplies the logits of the project half.
        token_bias: as in :func:`project`.
        residual: as in :func:`project`.
        query_scale: multiplies the logits of the tokenize half.
        mask: as in :func:`tokenize`, of the pixels of Y. With ``return_map=False`` a masked pixel of x is
            not used at all; otherwise the map is computed there too, and the pixel takes part in the
            backward pass only where a gradient of the map arrives at it.
        pixel_bias: as in :func:`tokenize`, of the pixels of Y.
        extra_values: as in :func:`tokenize`, appended to the tokens of Y.
        return_map: whether to return Y. If not, it is never written.
        return_stats: also return the log-sum-exp of the tokenize half's logits.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        (Y, tokens), with ``return_stats`` (Y, tokens, lse): Y the map, or None with ``return_map=False``;
        tokens (B, Lq, D + P); lse (B, Lq).

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device, or a backend that is unknown or refuses the call.
        RuntimeError: the backend asked for cannot run here.

    Example:
        >>> import torch, vt_fast
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 64)
        >>> y, pooled = vt_fast.project_tokenize(x, tokens, tokens, queries=torch.randn(8, 64), residual=x)
        >>> y.shape, pooled.shape
        (torch.Size([2, 64, 14, 14]), torch.Size([2, 8, 64]))
    """
    plain = plain_eager()
    residual_is_input = residual is x
    other = None if residual_is_input else residual
    keys, queries = _scaled("scale", scale, keys), _scaled("query_scale", query_scale, queries)
    careful = not plain or any_autocast() or type(num_heads) is not int
    if careful or type(return_map) is not bool or type(return_stats) is not bool:
        checks.feature_map("x", x)
        checks.flag("return_map", return_map)
        checks.flag("return_stats", return_stats)
        x, keys, values, queries, other, extra_values = autocast(
            x, keys, values, queries, other, extra_values
        )
    operands = (x, keys, values, queries, token_bias, other, mask, pixel_bias, extra_values)
    options = (residual_is_input, num_heads, return_map)
    if careful:
        call = ProjectTokenize(*operands, *options, keep_exact=False)
        PROJECT_TOKENIZE.check(call, backend)
        if algebra.exporting():
            found, tokens, lse = algebra.project_tokenize(call)
            y = found if return_map else None
            return (y, tokens, lse) if return_stats else (y, tokens)
    try:
        differentiable = _needs_gradient(plain, *operands)
        keep_exact = differentiable or not isinstance(x, Tensor)
        found, tokens, _, lse = PROJECT_TOKENIZE(
            (*operands, *options, keep_exact), backend, plain=plain, differentiable=differentiable
        )
    except Exception as error:
        PROJECT_TOKENIZE.explain(error, (*operands, *options, False), backend)
        raise
    y = found if return_map else None
    return (y, tokens, lse) if return_stats else (y, tokens)


def merge(tokens: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the results of :func:`tokenize` for S disjoint sets of pixels.

    ``lse = log sum_s exp(lse_s)`` and ``tokens = sum_s exp(lse_s - lse) tokens_s``: exactly the tokens of
    all pixels at once. Differentiable as often as wanted. Plain PyTorch: these tensors are small.

    Args:
        tokens: (S, B, L, C), floating point.
        lse: (S, B, L), or (S, B, num_heads * L), in float32 (float64 for float64 tokens); -inf for an empty
            set.

    Returns:
        tokens (B, L, C) in the same dtype, and lse shaped as one set's; 0 and -inf where all sets are empty.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device.

    Example:
        >>> import torch, vt_fast
        >>> x, queries = torch.randn(1, 100, 8), torch.randn(4, 8)
        >>> parts = [vt_fast.tokenize(part, queries, return_stats=True) for part in x.split(30, dim=1)]
        >>> tokens, lse = vt_fast.merge(*map(torch.stack, zip(*parts)))
        >>> torch.allclose(tokens, vt_fast.tokenize(x, queries), atol=1e-5)
        True
    """
    checks.merge(tokens, lse)
    num_heads = lse.shape[2] // tokens.shape[2]
    highest = lse.detach().amax(0)
    highest = torch.where(highest == -torch.inf, 0, highest)
    weights = torch.exp(lse - highest)
    total = weights.sum(0)
    # log and division see 1 in place of 0, so that an empty result has gradients of 0, not NaN.
    positive = torch.where(total == 0, 1, total)
    merged_lse = torch.where(total == 0, -torch.inf, torch.log(positive) + highest)
    merged_lse = torch.where(highest == torch.inf, highest, merged_lse)  # not inf - inf
    shares = unflatten(weights / positive, -1, (num_heads, -1)).transpose(-1, -2)[..., None]
    empty = unflatten(lse == -torch.inf, -1, (num_heads, -1)).transpose(-1, -2)[..., None]
    blocks = unflatten(tokens.to(lse.dtype), -1, (num_heads, -1))
    blocks = torch.where(empty, 0, blocks)  # whatever an empty set's tokens are
    return (shares * blocks).sum(0).flatten(-2).to(tokens.dtype), merged_lse


def _scaled(name: str, scale: Any, rows: Any) -> Any:
    """Rows times the scale of their logits; other arguments are left for the checks to refuse."""
    if type(scale) is float and scale == 1.0:
        return rows
    checks.number(name, scale)
    if isinstance(rows, torch.fx.Proxy) or (isinstance(rows, Tensor) and rows.is_floating_point()):
        return rows * scale
    return rows


def _needs_gradient(plain: bool, *operands: Tensor | None) -> bool:
    if plain:
        return torch.is_grad_enabled() and torch._C._any_requires_grad(*operands)
    # A trace must not depend on whether gradients are enabled while it is made.
    if is_tracing():
        return True
    if not torch.is_grad_enabled():
        return False
    # Within a transform, a tensor does not say whether what it stands for requires a gradient.
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return True
    for operand in operands:  # noqa: SIM110 -- a generator would cost more than the question
        if operand is not None and operand.requires_grad:
            return True
    return False

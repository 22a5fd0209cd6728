"""The public ops: scale and cast the operands, call the op, and explain what is wrong where it refuses.

A feature map ``x`` is (B, N, C), or (B, C, H, W) in any memory format, whose pixels are then numbered
row-major. There are R = num_heads * L rows (``queries`` or ``keys``), head-major: rows h L to (h + 1) L
belong to head h. No op works in place, and none has dropout, which would break the exact folds of
:mod:`vt_fast.nn`.

The logits are ``S = scale * (x rows^T) + token_bias + scores + pixel_bias``. ``scale`` is a number without a
gradient. It multiplies the rows, not the map, before autocast casts them: unless it is a power of two, 16-bit
rows are rounded once more. Scaled rows must lie in the range of their dtype.

The width of rows tells what a head sees. Rows of width C / num_heads are block rows: head h sees channel
block h alone. Rows of width C see all channels. With one head both are the same.

Bags of different sizes, such as those of multiple instance learning, are passed one after the other, without
padding: x (total, C) and ``offsets`` (B + 1,), int32 or int64 on x's device, which start at 0 and end at
total. Then maps are (total, D), ``mask`` and ``pixel_bias`` (total,), ``scores`` (R, total); rows, values
of :func:`project` and biases of rows are shared or one for each bag. A bag may be empty. On a CPU the
offsets are checked. Elsewhere that would wait for the device, and wrong ones are clamped. A nested tensor
(``layout=torch.jagged``) (B, *, C) for x stands for both; other operands may be nested alike, and a map
that is returned is.

x may be a DTensor that is sharded over its samples or its pixels, or over both. Then processes exchange
tokens, and in the backward pass gradients of rows; no map is gathered (see :mod:`vt_fast.distributed`).
Operands with a number for each pixel are DTensors that are placed as x is, or plain tensors without
gradients. All others are DTensors, or plain tensors that every process holds alike. Tokens and statistics are
plain where the queries are and x is not sharded over its samples.

x, rows, values, ``extra_values`` and ``residual`` share one dtype; under autocast they are cast to its
dtype. ``token_bias``, ``pixel_bias`` and ``scores`` may have x's dtype or float32 (float64 for float64). They
are never rounded to x's dtype, also not under autocast, and get their gradients in their own dtype.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from vt_fast import checks
from vt_fast.backends.contract import Project, ProjectTokenize, Tokenize
from vt_fast.checks import ops as op_checks
from vt_fast.layout import is_dtensor
from vt_fast.merging import merged
from vt_fast.nested import Bags
from vt_fast.onnx import algebra
from vt_fast.operands import autocast_unread, effective_heads, scaled
from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE
from vt_fast.ops.library import plain_eager
from vt_fast.precision import any_autocast, autocast

__all__ = ["merge", "project", "project_tokenize", "tokenize"]


@overload
def tokenize(
    x: Tensor,
    queries: Tensor | None = ...,
    *,
    num_heads: int = ...,
    scale: float = ...,
    mask: Tensor | None = ...,
    pixel_bias: Tensor | None = ...,
    extra_values: Tensor | None = ...,
    values: Tensor | None = ...,
    scores: Tensor | None = ...,
    token_bias: Tensor | None = ...,
    normalize: str | None = ...,
    offsets: Tensor | None = ...,
    layer_norm_eps: float | None = ...,
    return_stats: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def tokenize(
    x: Tensor,
    queries: Tensor | None = ...,
    *,
    num_heads: int = ...,
    scale: float = ...,
    mask: Tensor | None = ...,
    pixel_bias: Tensor | None = ...,
    extra_values: Tensor | None = ...,
    values: Tensor | None = ...,
    scores: Tensor | None = ...,
    token_bias: Tensor | None = ...,
    normalize: str | None = ...,
    offsets: Tensor | None = ...,
    layer_norm_eps: float | None = ...,
    return_stats: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def tokenize(
    x: Tensor,
    queries: Tensor | None = None,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    mask: Tensor | None = None,
    pixel_bias: Tensor | None = None,
    extra_values: Tensor | None = None,
    values: Tensor | None = None,
    scores: Tensor | None = None,
    token_bias: Tensor | None = None,
    normalize: str | None = "pixels",
    offsets: Tensor | None = None,
    layer_norm_eps: float | None = None,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pool pixels into tokens: ``T = W V``, ``W = softmax_N(X Q^T)^T``, V = X (the paper's eqs. 1 and 2).

    Args:
        x: feature map (B, N, C) or (B, C, H, W); float16, bfloat16, float32 or float64.
        queries: (R, C) or block rows (R, C / num_heads), shared, or with a leading B, in x's dtype; R is
            num_heads * L. May be None where ``scores`` is given; then every row pools all channels.
        num_heads: how many groups the rows form. Must divide C where they are block rows.
        scale: multiplies the products of x and the queries.
        mask: (B, N) or (B, H, W) bool, True where a pixel takes part. A masked pixel is never used,
            even if it is NaN or inf, and gets a gradient of 0.
        pixel_bias: (B, N) or (B, H, W), added to each token's logit of that pixel; differentiable.
            -inf masks the pixel.
        extra_values: (N, P), a table shared by the batch, in x's dtype. Its rows are pooled with the same
            weights and appended to the tokens; a position code is one use. One head only, without offsets,
            and with ``normalize="pixels"``.
        values: V, a map (B, N, D) or (B, D, H, W), as x is, in any strides, which is pooled in place of x.
        scores: (B, R, N) or (B, R, H, W), added to the logits, or the logits themselves; differentiable. They
            are read and written in full: one product that already has them needs no fused op.
        token_bias: (R,) or (B, R), added to the logits of that row; differentiable. -inf removes the row,
            even if it holds NaN. With ``normalize="pixels"`` it cancels in the tokens, and is added to lse.
        normalize: what the weights W are. "pixels": softmax over the pixels. "tokens": softmax over the L
            rows of a head, for each pixel; slots, EMA and NetVLAD assign pixels so. None: the logits
            themselves.
        offsets: (B + 1,) bounds of bags; see the module.
        layer_norm_eps: pool LayerNorm(x) without affine parameters in place of x, ``(x - mean) / sqrt(var +
            eps)`` over the channels, for logits and tokens. The map is read once. A norm's weight goes into
            ``queries * weight``, and ``tokens * weight + bias`` is what it would have pooled; its bias
            cancels in the logits. With ``normalize="pixels"`` only, without ``values``. Autocast rounds x
            before it is normalised: turn it off where means are large against deviations.
        return_stats: also return a statistic of the weights: lse or mass.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        tokens in x's dtype: with block rows (B, L, D + P), where head h pools channel block h of V, otherwise
        (B, R, D + P). With ``return_stats`` also (B, R) in float32 (float64 for float64), differentiable: for
        "pixels" the natural log-sum-exp of the logits over the pixels, as :func:`merge` takes it, otherwise
        the mass, the sum of the weights over the pixels. Of an empty bag, a sample whose pixels are all
        masked, and a removed row, tokens are 0, lse -inf and the mass 0.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape, value or device, or a backend that is unknown or refuses the
            call.
        RuntimeError: the backend asked for cannot run here.

    Example:
        >>> import torch, vt_fast
        >>> x = torch.randn(2, 64, 14, 14, requires_grad=True)
        >>> tokens, lse = vt_fast.tokenize(x, torch.randn(16, 64), return_stats=True)
        >>> tokens.shape, lse.shape
        (torch.Size([2, 16, 64]), torch.Size([2, 16]))

        Soft assignment of pixels to 8 slots, and their means:

        >>> sums, mass = vt_fast.tokenize(x, torch.randn(8, 64), normalize="tokens", return_stats=True)
        >>> (sums / mass[..., None]).shape
        torch.Size([2, 8, 64])

        Three bags of instances, one of them empty:

        >>> offsets = torch.tensor([0, 5, 5, 12])
        >>> vt_fast.tokenize(torch.randn(12, 64), torch.randn(1, 64), offsets=offsets).shape
        torch.Size([3, 1, 64])
    """
    plain = plain_eager()
    if type(x) is not Tensor and is_dtensor(x):
        from vt_fast.distributed import dtensors

        return dtensors.tokenize(  # type: ignore[no-any-return]
            x,
            queries,
            num_heads=num_heads,
            scale=scale,
            mask=mask,
            pixel_bias=pixel_bias,
            extra_values=extra_values,
            values=values,
            scores=scores,
            token_bias=token_bias,
            normalize=normalize,
            offsets=offsets,
            layer_norm_eps=layer_norm_eps,
            return_stats=return_stats,
            backend=backend,
        )
    queries = scaled("scale", scale, queries)
    if type(x) is not Tensor and isinstance(x, Tensor) and x.is_nested:
        bags = Bags(x, offsets)
        x, offsets, values = bags.x, bags.offsets, bags.map("values", values)
        mask, pixel_bias = bags.map("mask", mask), bags.map("pixel_bias", pixel_bias)
        scores = bags.map("scores", scores, 2)
    family: tuple[Any, ...] = ()  # left out where all are defaults: each argument costs time
    if (
        values is not None
        or scores is not None
        or token_bias is not None
        or offsets is not None
        or normalize != "pixels"
        or layer_norm_eps is not None
    ):
        family = (values, scores, token_bias, offsets, normalize, layer_norm_eps)
        if layer_norm_eps is not None:
            op_checks.layer_norm_eps(layer_norm_eps)  # the op in C++ would take a tensor, 0 and infinity
    if not plain or any_autocast() or type(num_heads) is not int or type(return_stats) is not bool:
        op_checks.bags(x, offsets)
        checks.flag("return_stats", return_stats)
        x, queries, extra_values, values = autocast(x, queries, extra_values, values)
        family = family and (values, *family[1:])
        checked = Tokenize(x, queries, mask, pixel_bias, extra_values, num_heads, False, *family)
        TOKENIZE.check(checked, backend)
        if algebra.exporting():
            heads = effective_heads(x, queries, extra_values, num_heads, normalize, scores, offsets)
            tokens, stats = algebra.tokenize(checked._replace(num_heads=heads))
            return (tokens, stats) if return_stats else tokens
    try:
        heads = num_heads
        if heads > 1 and isinstance(x, Tensor):
            heads = effective_heads(x, queries, extra_values, heads, normalize, scores, offsets)
        differentiable = _needs_gradient(plain, x, queries, pixel_bias, extra_values)
        if family and not differentiable:
            differentiable = _needs_gradient(plain, values, scores, token_bias)
        keep_exact = normalize == "pixels" and (differentiable or not isinstance(x, Tensor))
        call: tuple[Any, ...] = (x, queries, mask, pixel_bias, extra_values, heads, keep_exact)
        if family:
            call += family
        tokens, _, stats = TOKENIZE(call, backend, plain=plain, differentiable=differentiable)
    except Exception as error:
        call = (x, queries, mask, pixel_bias, extra_values, num_heads, False, *family)
        TOKENIZE.explain(error, call, backend)
        raise
    return (tokens, stats) if return_stats else tokens


def project(
    x: Tensor,
    keys: Tensor | None,
    values: Tensor,
    *,
    num_heads: int = 1,
    scale: float = 1.0,
    token_bias: Tensor | None = None,
    residual: Tensor | None = None,
    scores: Tensor | None = None,
    normalize: str | None = "tokens",
    offsets: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Spread tokens over pixels: ``Y = R + W V`` with ``W = softmax_L(X K^T + b)`` (the paper's eq. 5).

    Args:
        x: feature map (B, N, C) or (B, C, H, W); float16, bfloat16, float32 or float64.
        keys: (R, C) or block rows (R, C / num_heads), shared, or with a leading B, in x's dtype; R is
            num_heads * L. May be None where ``scores`` is given; then x gives its shape and dtype alone, and
            gets no gradient, unless it is the residual.
        values: (L, D) or (B, L, D): head h writes channels [h D / num_heads, (h + 1) D / num_heads). With
            several heads also (R, D) or (B, R, D): each row writes all channels, and the heads are summed.
            This folds an output projection.
        num_heads: how many heads have weights of their own; must divide D where values have L rows.
        scale: multiplies the products of x and the keys.
        token_bias: (R,) or (B, R), added to each pixel's logit of that token; differentiable. -inf removes
            the token, even if it holds NaN; where all of a head's are -inf, the head adds 0.
        residual: a map (B, N, D) or (B, D, H, W) in any strides, or None. Passing ``x`` itself (the same
            object, with D = C) costs no second read of the map.
        scores: (B, R, N) or (B, R, H, W), added to the logits, or the logits themselves; differentiable.
        normalize: what the weights W are. "tokens": softmax over the L rows of a head. "exp": the
            exponential of the logits, not shifted, so that large ones overflow. None: the logits themselves.
            A softmax over the pixels is "exp" with ``token_bias = -lse``, and -inf where lse is -inf.
        offsets: (B + 1,) bounds of bags; see the module.
        backend: None to choose (see ``python -m vt_fast info``), or a name, which never falls back.

    Returns:
        A map (B, N, D) or (B, D, H, W), as x is, in x's dtype, strided as ``torch.empty_like(x)``.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape, value or device, or a backend that is unknown or refuses the
            call.
        RuntimeError: the backend asked for cannot run here.

    Example:
        >>> import torch, vt_fast
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 64)
        >>> vt_fast.project(x, keys=tokens, values=tokens, residual=x).shape
        torch.Size([2, 64, 14, 14])

        Four heads that see a block of the channels each, with the output projection folded into the values:

        >>> keys, values = torch.randn(2, 4 * 16, 16), torch.randn(2, 4 * 16, 64)
        >>> vt_fast.project(x, keys, values, num_heads=4).shape
        torch.Size([2, 64, 14, 14])
    """
    plain = plain_eager()
    if type(x) is not Tensor and is_dtensor(x):
        from vt_fast.distributed import dtensors

        return dtensors.project(
            x,
            keys,
            values,
            num_heads=num_heads,
            scale=scale,
            token_bias=token_bias,
            residual=residual,
            scores=scores,
            normalize=normalize,
            offsets=offsets,
            backend=backend,
        )
    # By identity, before anything makes a new tensor of either: compilers hand an op two tensors for one.
    residual_is_input = residual is x
    other = None if residual_is_input else residual
    keys = scaled("scale", scale, keys)
    bags = None
    if type(x) is not Tensor and isinstance(x, Tensor) and x.is_nested:
        bags = Bags(x, offsets)
        x, offsets, other = bags.x, bags.offsets, bags.map("residual", other)
        scores = bags.map("scores", scores, 2)
    family: tuple[Any, ...] = ()
    if scores is not None or offsets is not None or normalize != "tokens":
        family = (scores, offsets, normalize)
    careful = not plain or any_autocast() or type(num_heads) is not int
    if careful:
        op_checks.bags(x, offsets)
        if keys is None and not residual_is_input:
            x, values, other = autocast_unread(x, values, other)
        else:
            x, keys, values, other = autocast(x, keys, values, other)
    call: tuple[Any, ...] = (x, keys, values, token_bias, other, residual_is_input, num_heads)
    if family:
        call += family
    if careful:
        PROJECT.check(call, backend)
        if algebra.exporting():
            return algebra.project(Project(*call))
    try:
        differentiable = _needs_gradient(plain, x, keys, values, token_bias, other)
        if family and not differentiable:
            differentiable = _needs_gradient(plain, scores)
        out: Tensor = PROJECT(call, backend, plain=plain, differentiable=differentiable)
    except Exception as error:
        PROJECT.explain(error, call, backend)
        raise
    return out if bags is None else bags.nested(out)


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
        values: as in :func:`project`; both take block rows and summed heads.
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
    if type(x) is not Tensor and is_dtensor(x):
        from vt_fast.distributed import dtensors

        return dtensors.project_tokenize(  # type: ignore[return-value]
            x,
            keys,
            values,
            queries,
            num_heads=num_heads,
            scale=scale,
            token_bias=token_bias,
            residual=residual,
            query_scale=query_scale,
            mask=mask,
            pixel_bias=pixel_bias,
            extra_values=extra_values,
            return_map=return_map,
            return_stats=return_stats,
            backend=backend,
        )
    residual_is_input = residual is x
    other = None if residual_is_input else residual
    keys, queries = scaled("scale", scale, keys), scaled("query_scale", query_scale, queries)
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
    return merged(tokens, lse)


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

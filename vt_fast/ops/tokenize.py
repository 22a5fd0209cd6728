"""``vt_fast::tokenize`` and its backward: schema, fake kernels, derivative, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast import checks
from vt_fast.backends.contract import Backend, Tokenize, TokenizeBackward
from vt_fast.layout import channel_count, pixel_count
from vt_fast.ops.library import (
    DifferentiableOp,
    Pass,
    check_needs,
    fake_gradients,
    gradients,
    nothing,
)
from vt_fast.precision import compute_dtype


def _check(call: Tokenize) -> None:
    checks.feature_map("x", call.x)
    checks.tokenize(call.x, call.queries, call.num_heads, call.mask, call.pixel_bias, call.extra_values)


def _forward(call: Tokenize, backend: Backend) -> tuple[Tensor, ...]:
    tokens, lse = backend.tokenize(call)
    return (*round_tokens(tokens, call.x.dtype, call.keep_exact), lse)


def round_tokens(tokens: Tensor, dtype: torch.dtype, keep_exact: bool) -> tuple[Tensor, Tensor]:
    """Tokens in the map's dtype, and unrounded where that is another and the backward will want them."""
    if tokens.dtype == dtype:
        return tokens, nothing(tokens)
    return tokens.to(dtype), tokens if keep_exact else nothing(tokens)


def _forward_fake(call: Tokenize) -> tuple[Tensor, ...]:
    rows = call.queries.shape[-2]
    return fake_tokens(
        call.x, rows // call.num_heads, channel_count(call.x), call.extra_values, rows, call.keep_exact
    )


def fake_tokens(
    x: Tensor, count: int, channels: int, extra_values: Tensor | None, rows: int, keep_exact: bool
) -> tuple[Tensor, ...]:
    """Tokens (B, count, channels + P), the same unrounded, and lse (B, rows), without data."""
    shape = (x.shape[0], count, channels + (0 if extra_values is None else extra_values.shape[1]))
    dtype = compute_dtype(x.dtype)
    exact_shape = shape if keep_exact and x.dtype != dtype else (0,)
    return (
        x.new_empty(shape),
        x.new_empty(exact_shape, dtype=dtype),
        x.new_empty((x.shape[0], rows), dtype=dtype),
    )


def _forward_flops(call: Tokenize) -> int:
    return pooling_products(call.x, call.queries, call.extra_values, of_queries=2, of_extra=1)


def pooling_products(
    x: Tensor, queries: Tensor, extra_values: Tensor | None, *, of_queries: int, of_extra: int
) -> int:
    """FLOPs of so many products of N pixels with the queries, and of the extra values with the scores."""
    rows, width = queries.shape[-2:]
    columns = of_queries * width + (0 if extra_values is None else of_extra * extra_values.shape[1])
    return 2 * x.shape[0] * pixel_count(x) * rows * columns


def _backward(call: TokenizeBackward, backend: Backend) -> tuple[Tensor | None, ...]:
    dx, *small = backend.tokenize_backward(call)
    return (dx, *gradients(small, (call.queries, call.pixel_bias, call.extra_values)))


def _backward_fake(call: TokenizeBackward) -> tuple[Tensor | None, ...]:
    dx = torch.empty_like(call.x) if call.needs[0] else None
    return (dx, *fake_gradients(call.needs[1:], (call.queries, call.pixel_bias, call.extra_values)))


def _backward_flops(call: TokenizeBackward) -> int:
    # logits again and dA, then dx = A dT + dS queries, dqueries, dextra_values
    of_queries, of_extra = 2 + 2 * call.needs[0] + call.needs[1], 1 + call.needs[3]
    return pooling_products(call.x, call.queries, call.extra_values, of_queries=of_queries, of_extra=of_extra)


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    tokens, exact, lse = results
    ctx.mark_non_differentiable(exact)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*args[:5], exact if args[6] and exact.dtype != tokens.dtype else tokens, lse)
    ctx.num_heads = args[5]


def _derivative(
    ctx: Any, needed: tuple[bool, ...], grad_tokens: Tensor | None, _: None, grad_lse: Tensor | None
) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    if grad_tokens is None:
        if grad_lse is None:
            return ()
        grad_tokens = torch.zeros_like(saved[5])
    needs = [needed[0], needed[1], needed[3], needed[4]]
    call = (grad_tokens, grad_lse, *saved, ctx.num_heads, needs)
    dx, dqueries, dpixel_bias, dextra_values = TOKENIZE.call_backward(call, ctx.backend)
    return dx, dqueries, None, dpixel_bias, dextra_values


TOKENIZE = DifferentiableOp(
    Pass(
        "tokenize",
        Tokenize,
        "Tensor x, Tensor? queries, Tensor? mask, Tensor? pixel_bias, Tensor? extra_values, int num_heads, "
        "bool keep_exact, Tensor? values=None, Tensor? scores=None, Tensor? token_bias=None, "
        'Tensor? offsets=None, str? normalize="pixels", float? layer_norm_eps=None',
        "Tensor tokens, Tensor exact, Tensor stats",
        run=_forward,
        fake=_forward_fake,
        flops=_forward_flops,
        check=_check,
    ),
    Pass(
        "tokenize_backward",
        TokenizeBackward,
        "Tensor grad_tokens, Tensor? grad_stats, Tensor x, Tensor? queries, Tensor? mask, "
        "Tensor? pixel_bias, Tensor? extra_values, Tensor tokens, Tensor stats, int num_heads, bool[] needs, "
        "Tensor? values=None, Tensor? scores=None, Tensor? token_bias=None, Tensor? offsets=None, "
        'str? normalize="pixels", float? layer_norm_eps=None',
        "Tensor dx, Tensor dqueries, Tensor dpixel_bias, Tensor dextra_values, Tensor dvalues, "
        "Tensor dscores, Tensor dtoken_bias",
        run=_backward,
        fake=_backward_fake,
        flops=_backward_flops,
        check=check_needs(7),
    ),
    save=_save,
    derivative=_derivative,
)

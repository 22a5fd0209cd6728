"""``vt_fast::tokenize`` and its backward: schema, fake kernels, derivative, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.backends import load
from vt_fast.checks import channel_count, pixel_count
from vt_fast.ops.library import (
    DifferentiableOp,
    fake_gradients,
    gradients,
    nothing,
    optional,
    stat_dtype,
)


def _forward(
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    heads: int,
    keep_exact: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, lse = load(backend).tokenize(x, queries, mask, log_weights, position, heads)
    return (*round_tokens(tokens, x.dtype, keep_exact), lse)


def round_tokens(tokens: Tensor, dtype: torch.dtype, keep_exact: bool) -> tuple[Tensor, Tensor]:
    """Tokens in the map's dtype, and unrounded where that is another and the backward will want them."""
    if tokens.dtype == dtype:
        return tokens, nothing(tokens)
    return tokens.to(dtype), tokens if keep_exact else nothing(tokens)


def fake_tokens(x: Tensor, tokens: tuple[int, int, int], rows: int, keep_exact: bool) -> tuple[Tensor, ...]:
    """Tokens of a shape, the unrounded ones, and lse (B, rows), without data."""
    dtype = stat_dtype(x.dtype)
    exact_shape = tokens if keep_exact and x.dtype != dtype else (0,)
    return (
        x.new_empty(tokens),
        x.new_empty(exact_shape, dtype=dtype),
        x.new_empty((x.shape[0], rows), dtype=dtype),
    )


def _forward_fake(
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    heads: int,
    keep_exact: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    rows = queries.shape[-2]
    width = channel_count(x) + (0 if position is None else position.shape[1])
    return fake_tokens(x, (x.shape[0], rows // heads, width), rows, keep_exact)


def _forward_flops(
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    heads: int,
    *rest: Any,
) -> int:
    return _products(x, queries, position, channels=2, table=1)


def _products(x: Tensor, queries: Tensor, position: Tensor | None, *, channels: int, table: int) -> int:
    """FLOPs of so many products of x with the queries, and so many of the table with their scores."""
    rows, width = queries.shape[-2:]
    columns = channels * width + (0 if position is None else table * position.shape[1])
    return 2 * x.shape[0] * pixel_count(x) * rows * columns


def _backward(
    grad_tokens: Tensor,
    grad_lse: Tensor | None,
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    tokens: Tensor,
    lse: Tensor,
    heads: int,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    dx, *small = load(backend).tokenize_backward(
        grad_tokens, grad_lse, x, queries, mask, log_weights, position, tokens, lse, heads, needs
    )
    return (nothing(x) if dx is None else dx, *gradients(small, (queries, log_weights, position)))


def _backward_fake(
    grad_tokens: Tensor,
    grad_lse: Tensor | None,
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    tokens: Tensor,
    lse: Tensor,
    heads: int,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    dx = torch.empty_like(x) if needs[0] else nothing(x)
    return (dx, *fake_gradients(needs[1:], (queries, log_weights, position)))


def _backward_flops(
    grad_tokens: Tensor,
    grad_lse: Tensor | None,
    x: Tensor,
    queries: Tensor,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    tokens: Tensor,
    lse: Tensor,
    heads: int,
    needs: list[bool],
    backend: str,
) -> int:
    # logits again and dA, then dx = A dT + dS queries, dqueries, dposition
    return _products(x, queries, position, channels=2 + 2 * needs[0] + needs[1], table=1 + needs[3])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, queries, mask, log_weights, position, heads, _, backend = inputs
    tokens, exact, lse = output
    ctx.mark_non_differentiable(exact)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, queries, mask, log_weights, position, exact if exact.numel() else tokens, lse)
    ctx.heads, ctx.backend = heads, backend


def _derivative(ctx: Any, grad_tokens: Tensor | None, _: None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    x, queries, mask, log_weights, position, tokens, lse = ctx.saved_tensors
    if grad_tokens is None:
        if grad_lse is None:
            return (None,) * 8
        grad_tokens = torch.zeros_like(tokens)
    needs = [ctx.needs_input_grad[index] for index in (0, 1, 3, 4)]
    grads = TOKENIZE.call_backward(
        grad_tokens,
        grad_lse,
        x,
        queries,
        mask,
        log_weights,
        position,
        tokens,
        lse,
        ctx.heads,
        needs,
        ctx.backend,
    )
    dx, dqueries, dweights, dposition = optional(grads, needs)
    return dx, dqueries, None, dweights, dposition, None, None, None


TOKENIZE = DifferentiableOp(
    "tokenize",
    forward=_forward,
    forward_schema=(
        "(Tensor x, Tensor queries, Tensor? mask, Tensor? log_weights, Tensor? position, int heads, "
        "bool keep_exact, str backend) -> (Tensor tokens, Tensor exact, Tensor lse)"
    ),
    forward_fake=_forward_fake,
    forward_flops=_forward_flops,
    backward=_backward,
    backward_schema=(
        "(Tensor grad_tokens, Tensor? grad_lse, Tensor x, Tensor queries, Tensor? mask, "
        "Tensor? log_weights, Tensor? position, Tensor tokens, Tensor lse, int heads, bool[] needs, "
        "str backend) -> (Tensor dx, Tensor dqueries, Tensor dlog_weights, Tensor dposition)"
    ),
    backward_fake=_backward_fake,
    backward_flops=_backward_flops,
    setup_context=_setup_context,
    derivative=_derivative,
)

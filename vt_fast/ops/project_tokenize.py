"""``vt_fast::project_tokenize`` and its backward: schema, fake kernels, derivative, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.backends import load
from vt_fast.checks import pixel_count
from vt_fast.layout import empty_map_like
from vt_fast.ops.library import DifferentiableOp, fake_gradients, gradients, nothing, optional
from vt_fast.ops.project import products
from vt_fast.ops.tokenize import fake_tokens, round_tokens


def _forward(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    residual_input: bool,
    heads: int,
    return_map: bool,
    keep_exact: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    y, tokens, lse = load(backend).project_tokenize(
        x,
        keys,
        values,
        queries,
        bias,
        residual,
        mask,
        log_weights,
        position,
        residual_input,
        heads,
        return_map,
    )
    return (nothing(x) if y is None else y, *round_tokens(tokens, x.dtype, keep_exact), lse)


def _forward_fake(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    residual_input: bool,
    heads: int,
    return_map: bool,
    keep_exact: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    y = empty_map_like(x, values.shape[-1]) if return_map else nothing(x)
    rows = queries.shape[-2]
    width = values.shape[-1] + (0 if position is None else position.shape[1])
    return (y, *fake_tokens(x, (x.shape[0], rows, width), rows, keep_exact))


def _tokenize_products(
    x: Tensor, queries: Tensor, position: Tensor | None, of_queries: int, of_table: int
) -> int:
    rows, width = queries.shape[-2:]
    table_width = 0 if position is None else position.shape[1]
    return 2 * x.shape[0] * pixel_count(x) * rows * (of_queries * width + of_table * table_width)


def _forward_flops(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    *rest: Any,
) -> int:
    return products(x, keys, values, of_keys=1, of_values=1) + _tokenize_products(x, queries, position, 2, 1)


def _backward(
    grad_map: Tensor | None,
    grad_tokens: Tensor,
    grad_lse: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    tokens: Tensor,
    lse: Tensor,
    residual_input: bool,
    heads: int,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    dx, dkeys, dvalues, dqueries, dbias, dresidual, dweights, dposition = load(
        backend
    ).project_tokenize_backward(
        grad_map,
        grad_tokens,
        grad_lse,
        x,
        keys,
        values,
        queries,
        bias,
        residual,
        mask,
        log_weights,
        position,
        tokens,
        lse,
        residual_input,
        heads,
        needs,
    )
    small = gradients(
        (dkeys, dvalues, dqueries, dbias, dweights, dposition),
        (keys, values, queries, bias, log_weights, position),
    )
    maps = [nothing(x) if part is None else part for part in (dx, dresidual)]
    return (maps[0], *small[:4], maps[1], *small[4:])


def _backward_fake(
    grad_map: Tensor | None,
    grad_tokens: Tensor,
    grad_lse: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    tokens: Tensor,
    lse: Tensor,
    residual_input: bool,
    heads: int,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    small = fake_gradients([*needs[1:5], *needs[6:]], (keys, values, queries, bias, log_weights, position))
    dx = torch.empty_like(x) if needs[0] else nothing(x)
    dresidual = torch.empty_like(residual) if residual is not None and needs[5] else nothing(x)
    return (dx, *small[:4], dresidual, *small[4:])


def _backward_flops(
    grad_map: Tensor | None,
    grad_tokens: Tensor,
    grad_lse: Tensor | None,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    log_weights: Tensor | None,
    position: Tensor | None,
    tokens: Tensor,
    lse: Tensor,
    residual_input: bool,
    heads: int,
    needs: list[bool],
    backend: str,
) -> int:
    # the map again, its logits and dA; the gradient at the map; then project's backward
    return products(
        x, keys, values, of_keys=1 + needs[0] + needs[1], of_values=2 + needs[2]
    ) + _tokenize_products(x, queries, position, 4 + needs[3], 1 + needs[7])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, (residual_input, heads, return_map, _, backend) = inputs[:9], inputs[9:]
    y, tokens, exact, lse = output
    ctx.mark_non_differentiable(exact, *([] if return_map else [y]))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, exact if exact.numel() else tokens, lse)
    ctx.residual_input, ctx.heads, ctx.backend = residual_input, heads, backend


def _derivative(
    ctx: Any, grad_map: Tensor | None, grad_tokens: Tensor | None, _: None, grad_lse: Tensor | None
) -> tuple[Any, ...]:
    *tensors, tokens, lse = ctx.saved_tensors
    if grad_map is None and grad_tokens is None and grad_lse is None:
        return (None,) * 14
    if grad_tokens is None:
        grad_tokens = torch.zeros_like(tokens)
    needs = [*ctx.needs_input_grad[:6], *ctx.needs_input_grad[7:9]]
    grads = PROJECT_TOKENIZE.call_backward(
        grad_map,
        grad_tokens,
        grad_lse,
        *tensors,
        tokens,
        lse,
        ctx.residual_input,
        ctx.heads,
        needs,
        ctx.backend,
    )
    result = optional(grads, needs)
    return (*result[:6], None, *result[6:], None, None, None, None, None)


PROJECT_TOKENIZE = DifferentiableOp(
    "project_tokenize",
    forward=_forward,
    forward_schema=(
        "(Tensor x, Tensor keys, Tensor values, Tensor queries, Tensor? bias, Tensor? residual, "
        "Tensor? mask, Tensor? log_weights, Tensor? position, bool residual_input, int heads, "
        "bool return_map, bool keep_exact, str backend) "
        "-> (Tensor map, Tensor tokens, Tensor exact, Tensor lse)"
    ),
    forward_fake=_forward_fake,
    forward_flops=_forward_flops,
    backward=_backward,
    backward_schema=(
        "(Tensor? grad_map, Tensor grad_tokens, Tensor? grad_lse, Tensor x, Tensor keys, Tensor values, "
        "Tensor queries, Tensor? bias, Tensor? residual, Tensor? mask, Tensor? log_weights, "
        "Tensor? position, Tensor tokens, Tensor lse, bool residual_input, int heads, bool[] needs, "
        "str backend) -> (Tensor dx, Tensor dkeys, Tensor dvalues, Tensor dqueries, Tensor dbias, "
        "Tensor dresidual, Tensor dlog_weights, Tensor dposition)"
    ),
    backward_fake=_backward_fake,
    backward_flops=_backward_flops,
    setup_context=_setup_context,
    derivative=_derivative,
)

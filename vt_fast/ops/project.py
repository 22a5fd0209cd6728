"""``vt_fast::project`` and its backward: schema, fake kernels, derivative, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.backends import load
from vt_fast.checks import pixel_count
from vt_fast.layout import empty_map_like
from vt_fast.ops.library import DifferentiableOp, fake_gradients, gradients, nothing, optional


def _forward(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_input: bool,
    heads: int,
    backend: str,
) -> Tensor:
    out: Tensor = load(backend).project(x, keys, values, bias, residual, residual_input, heads)
    return out


def _forward_fake(x: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return empty_map_like(x, values.shape[-1])


def _forward_flops(x: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> int:
    return products(x, keys, values, of_keys=1, of_values=1)


def products(x: Tensor, keys: Tensor, values: Tensor, *, of_keys: int, of_values: int) -> int:
    """FLOPs of so many products of N pixels with the keys (heads * L, C), and with the values (L, D)."""
    key_columns, value_columns = keys.shape[-2] * keys.shape[-1], values.shape[-2] * values.shape[-1]
    return 2 * x.shape[0] * pixel_count(x) * (of_keys * key_columns + of_values * value_columns)


def _backward(
    grad_map: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual_input: bool,
    heads: int,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    dx, *small = load(backend).project_backward(grad_map, x, keys, values, bias, residual_input, heads, needs)
    return (nothing(x) if dx is None else dx, *gradients(small, (keys, values, bias)))


def _backward_fake(
    grad_map: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual_input: bool,
    heads: int,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    dx = torch.empty_like(x) if needs[0] else nothing(x)
    return (dx, *fake_gradients(needs[1:], (keys, values, bias)))


def _backward_flops(
    grad_map: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual_input: bool,
    heads: int,
    needs: list[bool],
    backend: str,
) -> int:
    # logits again and dP, then dx = dS keys, dkeys, dvalues
    return products(x, keys, values, of_keys=1 + needs[0] + needs[1], of_values=1 + needs[2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, keys, values, bias, _, residual_input, heads, backend = inputs
    ctx.save_for_backward(x, keys, values, bias)
    ctx.residual_input, ctx.heads, ctx.backend = residual_input, heads, backend


def _derivative(ctx: Any, grad_map: Tensor) -> tuple[Any, ...]:
    x, keys, values, bias = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    dresidual = grad_map if ctx.needs_input_grad[4] else None
    if not any(needs):
        return (None, None, None, None, dresidual, None, None, None)
    grads = PROJECT.call_backward(
        grad_map, x, keys, values, bias, ctx.residual_input, ctx.heads, needs, ctx.backend
    )
    return (*optional(grads, needs), dresidual, None, None, None)


PROJECT = DifferentiableOp(
    "project",
    forward=_forward,
    forward_schema=(
        "(Tensor x, Tensor keys, Tensor values, Tensor? bias, Tensor? residual, bool residual_input, "
        "int heads, str backend) -> Tensor"
    ),
    forward_fake=_forward_fake,
    forward_flops=_forward_flops,
    backward=_backward,
    backward_schema=(
        "(Tensor grad_map, Tensor x, Tensor keys, Tensor values, Tensor? bias, bool residual_input, "
        "int heads, bool[] needs, str backend) -> (Tensor dx, Tensor dkeys, Tensor dvalues, Tensor dbias)"
    ),
    backward_fake=_backward_fake,
    backward_flops=_backward_flops,
    setup_context=_setup_context,
    derivative=_derivative,
)

"""``vt_fast::project`` and its backward: schema, fake kernels, derivative, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast import checks
from vt_fast.backends.contract import Backend, Project, ProjectBackward, ProjectTokenize
from vt_fast.layout import empty_map_like, pixel_count
from vt_fast.ops.library import DifferentiableOp, Pass, check_needs, fake_gradients, gradients


def check_residual(call: Project | ProjectTokenize) -> None:
    """Raise ValueError for two residuals, which only a raw op can be given."""
    if call.residual_is_input and call.residual is not None:
        raise ValueError("`residual` must be None where `residual_is_input` is True, got a tensor")


def _check(call: Project) -> None:
    checks.feature_map("x", call.x)
    check_residual(call)
    residual = call.x if call.residual_is_input else call.residual
    checks.project(call.x, call.keys, call.values, call.num_heads, call.token_bias, residual)


def _forward(call: Project, backend: Backend) -> Tensor:
    return backend.project(call)


def _forward_fake(call: Project) -> Tensor:
    return empty_map_like(call.x, call.values.shape[-1])


def _forward_flops(call: Project) -> int:
    return spreading_products(call.x, call.keys, call.values, of_keys=1, of_values=1)


def spreading_products(x: Tensor, keys: Tensor, values: Tensor, *, of_keys: int, of_values: int) -> int:
    """FLOPs of so many products of N pixels with the keys (num_heads * L, C), and with the values (L, D)."""
    key_columns, value_columns = keys.shape[-2] * keys.shape[-1], values.shape[-2] * values.shape[-1]
    return 2 * x.shape[0] * pixel_count(x) * (of_keys * key_columns + of_values * value_columns)


def _backward(call: ProjectBackward, backend: Backend) -> tuple[Tensor | None, ...]:
    dx, *small = backend.project_backward(call)
    return (dx, *gradients(small, (call.keys, call.values, call.token_bias)))


def _backward_fake(call: ProjectBackward) -> tuple[Tensor | None, ...]:
    dx = torch.empty_like(call.x) if call.needs[0] else None
    return (dx, *fake_gradients(call.needs[1:], (call.keys, call.values, call.token_bias)))


def _backward_flops(call: ProjectBackward) -> int:
    # logits again and dP, then dx = dS keys, dkeys, dvalues
    of_keys, of_values = 1 + call.needs[0] + call.needs[1], 1 + call.needs[2]
    return spreading_products(call.x, call.keys, call.values, of_keys=of_keys, of_values=of_values)


def _save(ctx: Any, args: tuple[Any, ...], results: Tensor) -> None:
    ctx.save_for_backward(*args[:4])
    ctx.residual_is_input, ctx.num_heads = args[5:7]


def _derivative(ctx: Any, needed: tuple[bool, ...], grad_map: Tensor) -> tuple[Any, ...]:
    needs = list(needed[:4])
    dresidual = grad_map if needed[4] else None
    if not any(needs):
        return (None, None, None, None, dresidual)
    call = (grad_map, *ctx.saved_tensors, ctx.residual_is_input, ctx.num_heads, needs)
    return (*PROJECT.call_backward(call, ctx.backend), dresidual)


PROJECT = DifferentiableOp(
    Pass(
        "project",
        Project,
        "Tensor x, Tensor? keys, Tensor values, Tensor? token_bias, Tensor? residual, "
        "bool residual_is_input, int num_heads, Tensor? scores=None, Tensor? offsets=None, "
        'str? normalize="tokens"',
        "Tensor map",
        run=_forward,
        fake=_forward_fake,
        flops=_forward_flops,
        check=_check,
    ),
    Pass(
        "project_backward",
        ProjectBackward,
        "Tensor grad_map, Tensor x, Tensor? keys, Tensor values, Tensor? token_bias, bool residual_is_input, "
        'int num_heads, bool[] needs, Tensor? scores=None, Tensor? offsets=None, str? normalize="tokens"',
        "Tensor dx, Tensor dkeys, Tensor dvalues, Tensor dtoken_bias, Tensor dscores",
        run=_backward,
        fake=_backward_fake,
        flops=_backward_flops,
        check=check_needs(5),
    ),
    save=_save,
    derivative=_derivative,
)

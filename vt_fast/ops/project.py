"""``vt_fast::project`` and its backward: schema, fake kernels, derivative, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.backends.contract import Backend, Project, ProjectBackward, ProjectTokenize
from vt_fast.checks import ops as op_checks
from vt_fast.layout import all_pixels, empty_map_like
from vt_fast.ops.library import DifferentiableOp, Pass, check_needs, fake_gradients, gradients


def check_residual(call: Project | ProjectTokenize) -> None:
    """Raise ValueError for two residuals, which only a raw op can be given."""
    if call.residual_is_input and call.residual is not None:
        raise ValueError("`residual` must be None where `residual_is_input` is True, got a tensor")


def _check(call: Project) -> None:
    op_checks.bags(call.x, call.offsets)
    check_residual(call)
    op_checks.project(call)


def _forward(call: Project, backend: Backend) -> Tensor:
    return backend.project(call)


def _forward_fake(call: Project) -> Tensor:
    return empty_map_like(call.x, call.values.shape[-1])


def _forward_flops(call: Project) -> int:
    return spreading_products(call.x, call.keys, call.values, of_keys=1, of_values=1)


def spreading_products(
    x: Tensor, keys: Tensor | None, values: Tensor, *, of_keys: int, of_values: int
) -> int:
    """FLOPs of so many products of all pixels with the keys, and with the values, for any heads."""
    key_columns = 0 if keys is None else keys.shape[-2] * keys.shape[-1]
    value_columns = values.shape[-2] * values.shape[-1]
    return 2 * all_pixels(x) * (of_keys * key_columns + of_values * value_columns)


def _small_operands(call: ProjectBackward) -> tuple[Tensor | None, ...]:
    return call.keys, call.values, call.token_bias, call.scores


def _backward(call: ProjectBackward, backend: Backend) -> tuple[Tensor | None, ...]:
    dx, *small = backend.project_backward(call)
    return (dx, *gradients(small, _small_operands(call)))


def _backward_fake(call: ProjectBackward) -> tuple[Tensor | None, ...]:
    dx = torch.empty_like(call.x) if call.needs[0] else None
    return (dx, *fake_gradients(call.needs[1:], _small_operands(call)))


def _backward_flops(call: ProjectBackward) -> int:
    # logits again and dP, then dx = dS keys, dkeys, dvalues
    of_keys, of_values = 1 + call.needs[0] + call.needs[1], 1 + call.needs[2]
    return spreading_products(call.x, call.keys, call.values, of_keys=of_keys, of_values=of_values)


def _save(ctx: Any, args: tuple[Any, ...], results: Tensor) -> None:
    ctx.residual_is_input, ctx.num_heads = args[5:7]
    if len(args) == 7:  # defaults at the end may have been left out
        ctx.save_for_backward(*args[:4])
    else:
        ctx.save_for_backward(*args[:4], *args[7:9])
        ctx.normalize = args[9:]


def _derivative(ctx: Any, needed: tuple[bool, ...], grad_map: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    needs = [*needed[:4], needed[7]]  # of a call without scores, that of the backend: False
    needs[0] &= saved[1] is not None or ctx.residual_is_input  # else x is not read
    dresidual = grad_map if needed[4] else None
    if not any(needs):
        return (None, None, None, None, dresidual)
    call = (grad_map, *saved[:4], ctx.residual_is_input, ctx.num_heads, needs)
    if len(saved) > 4:
        call = (*call, *saved[4:], *ctx.normalize)
    dx, dkeys, dvalues, dtoken_bias, dscores = PROJECT.call_backward(call, ctx.backend)
    return dx, dkeys, dvalues, dtoken_bias, dresidual, None, None, dscores


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

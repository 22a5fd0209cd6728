"""``vt_fast::project_tokenize`` and its backward: schema, fake kernels, derivative, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.backends.contract import Backend, ProjectTokenize, ProjectTokenizeBackward
from vt_fast.checks import feature_map
from vt_fast.checks import ops as op_checks
from vt_fast.layout import empty_map_like
from vt_fast.ops.library import DifferentiableOp, Pass, check_needs, fake_gradients, gradients, nothing
from vt_fast.ops.project import check_residual, spreading_products
from vt_fast.ops.tokenize import fake_tokens, pooling_products, round_tokens


def _check(call: ProjectTokenize) -> None:
    feature_map("x", call.x)
    check_residual(call)
    op_checks.project_tokenize(call)


def _forward(call: ProjectTokenize, backend: Backend) -> tuple[Tensor, ...]:
    y, tokens, lse = backend.project_tokenize(call)
    rounded = round_tokens(tokens, call.x.dtype, call.keep_exact)
    return (nothing(call.x) if y is None else y, *rounded, lse)


def _forward_fake(call: ProjectTokenize) -> tuple[Tensor, ...]:
    channels, rows = call.values.shape[-1], call.queries.shape[-2]
    y = empty_map_like(call.x, channels) if call.return_map else nothing(call.x)
    return (
        y,
        *fake_tokens(call.x, call.x.shape[0], rows, channels, call.extra_values, rows, call.keep_exact),
    )


def _forward_flops(call: ProjectTokenize) -> int:
    spreading = spreading_products(call.x, call.keys, call.values, of_keys=1, of_values=1)
    return spreading + _pooling_products(call, of_queries=2, of_extra=1)


def _pooling_products(
    call: ProjectTokenize | ProjectTokenizeBackward, *, of_queries: int, of_extra: int
) -> int:
    """FLOPs of so many products of the pixels with the queries, and of the extra values with the scores."""
    rows, width = call.queries.shape[-2:]
    extra = 0 if call.extra_values is None else call.extra_values.shape[1]
    return pooling_products(call.x, rows, of_queries * width + of_extra * extra)


def _small_operands(call: ProjectTokenizeBackward) -> tuple[Tensor | None, ...]:
    return call.keys, call.values, call.queries, call.token_bias, call.pixel_bias, call.extra_values


def _backward(call: ProjectTokenizeBackward, backend: Backend) -> tuple[Tensor | None, ...]:
    found = backend.project_tokenize_backward(call)
    small = gradients([*found[1:5], *found[6:]], _small_operands(call))
    return (found.x, *small[:4], found.residual, *small[4:])


def _backward_fake(call: ProjectTokenizeBackward) -> tuple[Tensor | None, ...]:
    needs, residual = call.needs, call.residual
    small = fake_gradients([*needs[1:5], *needs[6:]], _small_operands(call))
    dx = torch.empty_like(call.x) if needs[0] else None
    dresidual = torch.empty_like(residual) if residual is not None and needs[5] else None
    return (dx, *small[:4], dresidual, *small[4:])


def _backward_flops(call: ProjectTokenizeBackward) -> int:
    # the map again, its logits and dA; the gradient at the map, dqueries, dextra_values; project's backward
    needs = call.needs
    of_keys, of_values = 1 + needs[0] + needs[1], 2 + needs[2]
    spreading = spreading_products(call.x, call.keys, call.values, of_keys=of_keys, of_values=of_values)
    return spreading + _pooling_products(call, of_queries=4 + needs[3], of_extra=1 + needs[7])


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    ctx.residual_is_input, ctx.num_heads, return_map, keep_exact = args[9:13]
    y, tokens, exact, lse = results
    ctx.mark_non_differentiable(exact, *([] if return_map else [y]))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*args[:9], exact if keep_exact and exact.dtype != tokens.dtype else tokens, lse)


def _derivative(
    ctx: Any,
    needed: tuple[bool, ...],
    grad_map: Tensor | None,
    grad_tokens: Tensor | None,
    _: None,
    grad_lse: Tensor | None,
) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    if grad_map is None and grad_tokens is None and grad_lse is None:
        return ()
    if grad_tokens is None:
        grad_tokens = torch.zeros_like(saved[9])
    needs = [*needed[:6], *needed[7:9]]
    call = (grad_map, grad_tokens, grad_lse, *saved, ctx.residual_is_input, ctx.num_heads, needs)
    found = PROJECT_TOKENIZE.call_backward(call, ctx.backend)
    return (*found[:6], None, *found[6:])


PROJECT_TOKENIZE = DifferentiableOp(
    Pass(
        "project_tokenize",
        ProjectTokenize,
        "Tensor x, Tensor? keys, Tensor values, Tensor queries, Tensor? token_bias, Tensor? residual, "
        "Tensor? mask, Tensor? pixel_bias, Tensor? extra_values, bool residual_is_input, int num_heads, "
        "bool return_map, bool keep_exact",
        "Tensor map, Tensor tokens, Tensor exact, Tensor lse",
        run=_forward,
        fake=_forward_fake,
        flops=_forward_flops,
        check=_check,
        family='Tensor? scores=None, Tensor? offsets=None, str? normalize="tokens"',
    ),
    Pass(
        "project_tokenize_backward",
        ProjectTokenizeBackward,
        "Tensor? grad_map, Tensor grad_tokens, Tensor? grad_lse, Tensor x, Tensor keys, Tensor values, "
        "Tensor queries, Tensor? token_bias, Tensor? residual, Tensor? mask, Tensor? pixel_bias, "
        "Tensor? extra_values, Tensor tokens, Tensor lse, bool residual_is_input, int num_heads, "
        "bool[] needs",
        "Tensor dx, Tensor dkeys, Tensor dvalues, Tensor dqueries, Tensor dtoken_bias, Tensor dresidual, "
        "Tensor dpixel_bias, Tensor dextra_values",
        run=_backward,
        fake=_backward_fake,
        flops=_backward_flops,
        check=check_needs(8),
    ),
    save=_save,
    derivative=_derivative,
)

"""``vt_fast::tokenize`` and its backward: schema, fake kernels, derivative, FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.backends.contract import Backend, Tokenize, TokenizeBackward, row_count, sees_block
from vt_fast.checks import ops as op_checks
from vt_fast.layout import all_pixels, channel_count, sample_count
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
    op_checks.bags(call.x, call.offsets)
    op_checks.tokenize(call)


def _forward(call: Tokenize, backend: Backend) -> tuple[Tensor, ...]:
    tokens, stats = backend.tokenize(call)
    return (*round_tokens(tokens, call.x.dtype, call.keep_exact), stats)


def round_tokens(tokens: Tensor, dtype: torch.dtype, keep_exact: bool) -> tuple[Tensor, Tensor]:
    """Tokens in the map's dtype, and unrounded where that is another and the backward will want them."""
    if tokens.dtype == dtype:
        return tokens, nothing(tokens)
    return tokens.to(dtype), tokens if keep_exact else nothing(tokens)


def _rows(call: Tokenize | TokenizeBackward) -> tuple[int, bool]:
    """num_heads * L, and whether heads see channel blocks."""
    blocks = sees_block(call.queries, channel_count(call.x), call.num_heads)
    return row_count(call.queries, call.scores, call.offsets), blocks


def _forward_fake(call: Tokenize) -> tuple[Tensor, ...]:
    rows, blocks = _rows(call)
    channels = channel_count(call.x if call.values is None else call.values)
    return fake_tokens(
        call.x,
        sample_count(call.x, call.offsets),
        rows // call.num_heads if blocks else rows,
        channels,
        call.extra_values,
        rows,
        call.keep_exact,
    )


def fake_tokens(
    x: Tensor,
    batch: int,
    count: int,
    channels: int,
    extra_values: Tensor | None,
    rows: int,
    keep_exact: bool,
) -> tuple[Tensor, ...]:
    """Tokens (batch, count, channels + P), the same unrounded, and statistics (batch, rows), without data."""
    shape = (batch, count, channels + (0 if extra_values is None else extra_values.shape[1]))
    dtype = compute_dtype(x.dtype)
    exact_shape = shape if keep_exact and x.dtype != dtype else (0,)
    return (
        x.new_empty(shape),
        x.new_empty(exact_shape, dtype=dtype),
        x.new_empty((batch, rows), dtype=dtype),
    )


def _forward_flops(call: Tokenize) -> int:
    queries, values, extra = _columns(call)
    return pooling_products(call.x, _rows(call)[0], queries + values + extra)


def _columns(call: Tokenize | TokenizeBackward) -> tuple[int, int, int]:
    """How many numbers of a pixel a row meets: in its logit, in what it pools, and in the extra values."""
    channels = channel_count(call.x if call.values is None else call.values)
    return (
        0 if call.queries is None else call.queries.shape[-1],
        channels // call.num_heads if _rows(call)[1] else channels,
        0 if call.extra_values is None else call.extra_values.shape[1],
    )


def pooling_products(x: Tensor, rows: int, columns: int) -> int:
    """FLOPs of products of all pixels with so many rows, of so many columns together."""
    return 2 * all_pixels(x) * rows * columns


def _small_operands(call: TokenizeBackward) -> tuple[Tensor | None, ...]:
    return call.queries, call.pixel_bias, call.extra_values, call.scores, call.token_bias


def _backward(call: TokenizeBackward, backend: Backend) -> tuple[Tensor | None, ...]:
    found = backend.tokenize_backward(call)
    small = gradients([*found[1:4], *found[5:]], _small_operands(call))
    return (found.x, *small[:3], found.values, *small[3:])


def _backward_fake(call: TokenizeBackward) -> tuple[Tensor | None, ...]:
    needs, values = call.needs, call.values
    dx = torch.empty_like(call.x) if needs[0] else None
    dvalues = torch.empty_like(values) if values is not None and needs[4] else None
    small = fake_gradients([*needs[1:4], *needs[5:]], _small_operands(call))
    return (dx, *small[:3], dvalues, *small[3:])


def _backward_flops(call: TokenizeBackward) -> int:
    # logits again and dA, then dx = A dT + dS queries, dqueries, dextra_values; with values, A dT is theirs
    needs, (queries, values, extra) = call.needs, _columns(call)
    of_values = 1 + needs[0 if call.values is None else 4]
    columns = (1 + needs[0] + needs[1]) * queries + of_values * values + (1 + needs[3]) * extra
    return pooling_products(call.x, _rows(call)[0], columns)


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    tokens, exact, stats = results
    ctx.mark_non_differentiable(exact)
    ctx.set_materialize_grads(False)
    ctx.num_heads = args[5]
    if len(args) > 11 and args[11] != "pixels":
        # Nothing is saved that the formula does not need: results may then be changed in place.
        ctx.save_for_backward(*args[:5], None, None, *args[7:11])
        ctx.options = args[11:]
        return
    exact = exact if args[6] and exact.dtype != tokens.dtype else tokens
    if len(args) == 7:  # defaults at the end may have been left out
        ctx.save_for_backward(*args[:5], exact, stats)
    else:
        ctx.save_for_backward(*args[:5], exact, stats, *args[7:11])
        ctx.options = args[11:]


def _derivative(
    ctx: Any, needed: tuple[bool, ...], grad_tokens: Tensor | None, _: None, grad_stats: Tensor | None
) -> tuple[Any, ...]:
    if grad_tokens is None and grad_stats is None:
        return ()
    saved = ctx.saved_tensors
    if saved[5] is None:
        # Of tokens and statistics the backward has no use but for their sizes.
        if grad_tokens is None:
            forward = Tokenize._make((*saved[:5], ctx.num_heads, False, *saved[7:], *ctx.options))
            grad_tokens = torch.zeros_like(_forward_fake(forward)[0])
        stats = grad_stats
        if stats is None:
            stats = grad_tokens.new_empty((grad_tokens.shape[0], row_count(saved[1], saved[8], saved[10])))
        saved = (*saved[:5], grad_tokens, stats, *saved[7:])
    elif grad_tokens is None:
        grad_tokens = torch.zeros_like(saved[5])
    if len(saved) == 7:
        needs = [needed[0], needed[1], needed[3], needed[4], False, False, False]
        call = (grad_tokens, grad_stats, *saved, ctx.num_heads, needs)
        found = TOKENIZE.call_backward(call, ctx.backend)
        return (found[0], found[1], None, found[2], found[3], None, None, None, None)
    needs = [needed[0], needed[1], needed[3], needed[4], *needed[7:10]]
    needs[0] &= saved[1] is not None or saved[7] is None  # else x is not read
    call = (grad_tokens, grad_stats, *saved[:7], ctx.num_heads, needs, *saved[7:], *ctx.options)
    dx, dqueries, dpixel_bias, dextra_values, *others = TOKENIZE.call_backward(call, ctx.backend)
    return (dx, dqueries, None, dpixel_bias, dextra_values, None, None, *others)


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

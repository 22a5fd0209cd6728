"""Launching tokenize's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.contract import Tokenize, TokenizeBackward, TokenizeGradients
from vt_fast.backends.triton import library, operands
from vt_fast.backends.triton.arithmetic import ceil_div, power_of_two
from vt_fast.backends.triton.launch import common
from vt_fast.backends.triton.launch.parts import Tokens
from vt_fast.backends.triton.launcher import launch
from vt_fast.backends.triton.maps import Placed, alignment
from vt_fast.backends.triton.plan import cut, cut_across
from vt_fast.backends.triton.settings import Problem, Setting
from vt_fast.kernels.tokenize import tokenize_forward
from vt_fast.kernels.tokenize_backward import tokenize_backward as backward_kernel
from vt_fast.layout import channel_count, pixel_count
from vt_fast.precision import compute_dtype


def tokenize(call: Tokenize) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, C + P), rounded unless ``keep_exact``, and lse (B, num_heads * L)."""
    x, num_heads = call.x, call.num_heads
    rows, pixels = call.queries.shape[-2] // num_heads, pixel_count(x)
    channels = channel_count(x) // num_heads
    columns = 0 if call.extra_values is None else call.extra_values.shape[1]
    padded = power_of_two(rows, 16)
    place = Placed.of(x)
    align = alignment(place)
    queries, queries_batch = operands.rows(call.queries)

    def run(setting: Setting) -> tuple[Tensor, Tensor]:
        items = x.shape[0] * num_heads
        plan = cut(setting, x, pixels, channels, items, 4 * items * rows * (channels + columns))
        made = Tokens(x, num_heads, rows, channels, columns, plan, exact=call.keep_exact)
        launch(
            tokenize_forward,
            (plan.blocks * plan.parts * items,),
            *place.arguments(align),
            queries,
            queries_batch,
            operands.pixels(call.mask, x),
            operands.pixels(call.pixel_bias, x),
            x if call.extra_values is None else call.extra_values.contiguous(),
            *made.arguments,
            *common.shape_arguments(pixels, align, place),
            plan.parts,
            plan.each,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=common.pixel_align(place, pixels, align),
            WIDE=common.wide(pixels, channel_count(x), place),
            HEADS=num_heads,
            TOKENS=rows,
            TOKENS_PADDED=padded,
            CHANNELS=channels,
            COLUMNS=columns,
            COLUMNS_PADDED=power_of_two(columns, 16),
            HAS_MASK=call.mask is not None,
            HAS_PIXEL_BIAS=call.pixel_bias is not None,
            DIRECT=plan.direct,
            ACC=common.acc(x.dtype),
            **common.cut_options(plan),
            **common.options(setting, x.dtype),
            LIMIT=library.limit(x.dtype),
        )
        return made.combined()

    kind, layout = library.kind(x.dtype), common.layout_name(place)
    return common.attempt(Problem("tokenize_forward", kind, layout, channels, padded, pixels), x, run)


def tokenize_backward(call: TokenizeBackward) -> TokenizeGradients:
    """The gradients that are needed."""
    x, num_heads = call.x, call.num_heads
    needs_x, needs_queries, needs_pixel_bias, needs_extra_values = call.needs
    batch, pixels = x.shape[0], pixel_count(x)
    rows, channels = call.queries.shape[-2] // num_heads, channel_count(x) // num_heads
    columns = 0 if call.extra_values is None else call.extra_values.shape[1]
    sums = compute_dtype(x.dtype)
    padded = power_of_two(rows, 16)
    dx = torch.empty_like(x) if needs_x else None
    dpixel_bias = x.new_empty((num_heads, batch, pixels) if needs_pixel_bias else 0, dtype=sums)
    attention = x.new_empty((batch, pixels, rows) if needs_extra_values else 0, dtype=sums)
    place, out = Placed.of(x), Placed.of(x if dx is None else dx)
    align = alignment(place, out)
    queries, queries_batch = operands.rows(call.queries)
    shared = call.queries.dim() == 2
    lse, grad_tokens = call.lse.contiguous(), call.grad_tokens.contiguous()

    def run(setting: Setting) -> Tensor | None:
        items, part = batch * num_heads, 4 * num_heads * rows * channels
        plan = cut(setting, x, pixels, channels, items, batch * part)
        # Each sample leaves a part of its own, and all of them may be too much.
        across = needs_queries and shared and batch > 1
        if across:
            fewer = cut_across(setting, x, pixels, channels, num_heads, part)
            across = fewer.parts < batch * plan.parts
            plan = fewer if across else plan
        samples = 1 if across else batch
        dtype = common.part_dtype(plan, call.queries, shared=shared, sums=sums)
        shape = (samples, plan.parts, num_heads, rows, channels)
        part_dqueries = x.new_empty(shape if needs_queries else 0, dtype=dtype)
        launch(
            backward_kernel,
            (plan.blocks * num_heads * samples * plan.parts,),
            *place.arguments(align),
            queries,
            queries_batch,
            grad_tokens.to(x.dtype),
            operands.pixels(call.mask, x),
            operands.pixels(call.pixel_bias, x),
            x if call.extra_values is None else call.extra_values.contiguous(),
            lse,
            common.deltas(grad_tokens, call.tokens, call.grad_lse, lse, num_heads),
            *out.arguments(align),
            part_dqueries,
            dpixel_bias,
            attention,
            *common.shape_arguments(pixels, align, place, out),
            batch,
            ceil_div(pixels, setting.tile),
            plan.parts,
            plan.each if across else ceil_div(plan.each, setting.tile),
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=common.pixel_align(place, pixels, align),
            DX_LAYOUT=out.layout,
            WIDE=common.wide(pixels, channel_count(x), place, out),
            HEADS=num_heads,
            TOKENS=rows,
            TOKENS_PADDED=padded,
            CHANNELS=channels,
            COLUMNS=columns,
            COLUMNS_PADDED=power_of_two(columns, 16),
            HAS_MASK=call.mask is not None,
            HAS_PIXEL_BIAS=call.pixel_bias is not None,
            NEEDS_X=needs_x,
            NEEDS_QUERIES=needs_queries,
            NEEDS_PIXEL_BIAS=needs_pixel_bias,
            NEEDS_ATTENTION=needs_extra_values,
            ACROSS=across,
            **common.cut_options(plan),
            **common.options(setting, x.dtype),
        )
        return common.summed(part_dqueries, call.queries, shared=shared) if needs_queries else None

    kind, layout = library.kind(x.dtype), common.layout_name(place, out)
    problem = Problem("tokenize_backward", kind, layout, channels, padded, pixels)
    dqueries = common.attempt(problem, x, run)
    weights = call.pixel_bias
    dlog = None
    if needs_pixel_bias and weights is not None:
        dlog = (dpixel_bias[0] if num_heads == 1 else dpixel_bias.sum(0)).view(weights.shape)
    dextra_values = None
    if needs_extra_values:
        dextra_values = common.extra_values_gradient(attention, grad_tokens[..., channels:].to(sums))
    return TokenizeGradients(x=dx, queries=dqueries, pixel_bias=dlog, extra_values=dextra_values)

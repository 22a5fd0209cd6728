"""Launching project_tokenize's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.contract import (
    ProjectTokenize,
    ProjectTokenizeBackward,
    ProjectTokenizeGradients,
)
from vt_fast.backends.triton import library, operands
from vt_fast.backends.triton.arithmetic import power_of_two
from vt_fast.backends.triton.launch import common, composed
from vt_fast.backends.triton.launch.parts import Tokens
from vt_fast.backends.triton.launcher import launch
from vt_fast.backends.triton.maps import Placed, alignment
from vt_fast.backends.triton.plan import cut
from vt_fast.backends.triton.settings import Problem, Setting
from vt_fast.kernels.project_tokenize import project_tokenize_forward
from vt_fast.kernels.project_tokenize_backward import project_tokenize_backward as backward_kernel
from vt_fast.layout import channel_count, empty_map_like, pixel_count
from vt_fast.precision import compute_dtype


def project_tokenize(call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
    """The map (None unless wanted), its tokens (B, Lq, D + P) as tokenize's, and lse (B, Lq)."""
    x, num_heads = call.x, call.num_heads
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    tokens, out_channels = call.values.shape[-2:]
    widest = max(channels, out_channels)
    count = call.queries.shape[-2]
    columns = 0 if call.extra_values is None else call.extra_values.shape[1]
    shape = common.row_shape(num_heads, tokens)
    padded = power_of_two(count, 16)
    rows = max(padded, shape["HEADS_PADDED"] * shape["TOKENS_PADDED"])
    if composed.too_many_rows(rows):
        return composed.forward(call)
    y = empty_map_like(x, out_channels) if call.return_map else None
    place, out = Placed.of(x), Placed.of(x if y is None else y)
    base = place if call.residual is None else Placed.of(call.residual)
    align = alignment(place, base, out)
    keys, keys_batch = operands.rows(call.keys)
    values, values_batch = operands.rows(call.values)
    queries, queries_batch = operands.rows(call.queries)

    def run(setting: Setting) -> tuple[Tensor, Tensor]:
        plan = cut(setting, x, pixels, widest, batch, 4 * batch * count * (out_channels + columns))
        made = Tokens(x, 1, count, out_channels, columns, plan, exact=call.keep_exact)
        launch(
            project_tokenize_forward,
            (plan.blocks * plan.parts * batch,),
            *place.arguments(align),
            keys,
            keys_batch,
            values,
            values_batch,
            *operands.biases(call.token_bias, x),
            *base.arguments(align),
            queries,
            queries_batch,
            operands.pixels(call.mask, x),
            operands.pixels(call.pixel_bias, x),
            x if call.extra_values is None else call.extra_values.contiguous(),
            *out.arguments(align),
            *made.arguments,
            *common.shape_arguments(pixels, align, place, base, out),
            plan.parts,
            plan.each,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=common.pixel_align(place, pixels, align),
            R_LAYOUT=base.layout,
            Y_LAYOUT=out.layout,
            WIDE=common.wide(pixels, widest, place, base, out),
            **shape,
            QUERIES=count,
            QUERIES_PADDED=padded,
            CHANNELS=channels,
            OUT_CHANNELS=out_channels,
            COLUMNS=columns,
            COLUMNS_PADDED=power_of_two(columns, 16),
            HAS_TOKEN_BIAS=call.token_bias is not None,
            HAS_RESIDUAL=call.residual is not None,
            RESIDUAL_INPUT=call.residual_is_input,
            HAS_MASK=call.mask is not None,
            HAS_PIXEL_BIAS=call.pixel_bias is not None,
            STORE=call.return_map,
            DIRECT=plan.direct,
            ACC=common.acc(x.dtype),
            **common.cut_options(plan),
            **common.options(setting, x.dtype),
            SMALL_PRECISION=library.small_precision(x.dtype),
            LIMIT=library.limit(x.dtype),
        )
        return made.combined()

    kind, layout = library.kind(x.dtype), common.layout_name(place, base, out)
    problem = Problem("project_tokenize_forward", kind, layout, widest, rows, pixels)
    return y, *common.attempt(problem, x, run)


def project_tokenize_backward(call: ProjectTokenizeBackward) -> ProjectTokenizeGradients:
    """The gradients that are needed."""
    x, num_heads, residual = call.x, call.num_heads, call.residual
    needs_x, needs_keys, needs_values, needs_queries = call.needs[:4]
    needs_token_bias, needs_residual, needs_pixel_bias, needs_extra_values = call.needs[4:]
    needs_residual = needs_residual and residual is not None
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    tokens, out_channels = call.values.shape[-2:]
    widest = max(channels, out_channels)
    count = call.queries.shape[-2]
    columns = 0 if call.extra_values is None else call.extra_values.shape[1]
    sums = compute_dtype(x.dtype)
    shape = common.row_shape(num_heads, tokens)
    padded = power_of_two(count, 16)
    rows = max(padded, shape["HEADS_PADDED"] * shape["TOKENS_PADDED"])
    if composed.too_many_rows(rows):
        return composed.backward(call)
    dx = torch.empty_like(x) if needs_x else None
    dresidual = torch.empty_like(residual) if residual is not None and needs_residual else None
    dpixel_bias = x.new_empty((batch, pixels) if needs_pixel_bias else 0, dtype=sums)
    attention = x.new_empty((batch, pixels, count) if needs_extra_values else 0, dtype=sums)
    place, out = Placed.of(x), Placed.of(x if dx is None else dx)
    arriving = place if call.grad_map is None else Placed.of(call.grad_map.to(x.dtype))
    base = place if residual is None else Placed.of(residual)
    to_base = place if dresidual is None else Placed.of(dresidual)
    places = (place, arriving, base, out, to_base)
    align = alignment(*places)
    keys, keys_batch = operands.rows(call.keys)
    values, values_batch = operands.rows(call.values)
    queries, queries_batch = operands.rows(call.queries)
    share_keys, share_values, share_queries = (each.dim() == 2 for each in (keys, values, queries))
    token_bias = call.token_bias if needs_token_bias else None
    share_bias = token_bias is not None and token_bias.dim() == 1
    lse, grad_tokens = call.lse.contiguous(), call.grad_tokens.contiguous()

    def run(setting: Setting) -> tuple[Tensor | None, ...]:
        left = num_heads * tokens * channels * needs_keys
        left += out_channels * (tokens * needs_values + count * needs_queries)
        plan = cut(setting, x, pixels, widest, batch, 4 * batch * left)

        def parts(operand: Tensor, shared: bool, needed: bool, *sizes: int) -> Tensor:
            dtype = common.part_dtype(plan, operand, shared=shared, sums=sums)
            return x.new_empty((batch, plan.parts, *sizes) if needed else 0, dtype=dtype)

        part_dkeys = parts(keys, share_keys, needs_keys, num_heads * tokens, channels)
        part_dvalues = parts(values, share_values, needs_values, tokens, out_channels)
        part_dtoken_bias = parts(
            keys if token_bias is None else token_bias, share_bias, needs_token_bias, num_heads * tokens
        )
        part_dqueries = parts(queries, share_queries, needs_queries, count, out_channels)
        launch(
            backward_kernel,
            (plan.blocks * plan.parts * batch,),
            *arriving.arguments(align),
            grad_tokens.to(x.dtype),
            *place.arguments(align),
            keys,
            keys_batch,
            values,
            values_batch,
            *operands.biases(call.token_bias, x),
            *base.arguments(align),
            queries,
            queries_batch,
            operands.pixels(call.mask, x),
            operands.pixels(call.pixel_bias, x),
            x if call.extra_values is None else call.extra_values.contiguous(),
            lse,
            common.deltas(grad_tokens, call.tokens, call.grad_lse, lse, 1),
            *out.arguments(align),
            *to_base.arguments(align),
            part_dkeys,
            part_dvalues,
            part_dtoken_bias,
            part_dqueries,
            dpixel_bias,
            attention,
            *common.shape_arguments(pixels, align, *places),
            plan.parts,
            plan.each,
            G_LAYOUT=arriving.layout,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=common.pixel_align(place, pixels, align),
            R_LAYOUT=base.layout,
            DX_LAYOUT=out.layout,
            DR_LAYOUT=to_base.layout,
            WIDE=common.wide(pixels, widest, *places),
            **shape,
            QUERIES=count,
            QUERIES_PADDED=padded,
            CHANNELS=channels,
            OUT_CHANNELS=out_channels,
            COLUMNS=columns,
            COLUMNS_PADDED=power_of_two(columns, 16),
            HAS_GRAD=call.grad_map is not None,
            HAS_TOKEN_BIAS=call.token_bias is not None,
            HAS_RESIDUAL=residual is not None,
            RESIDUAL_INPUT=call.residual_is_input,
            HAS_MASK=call.mask is not None,
            HAS_PIXEL_BIAS=call.pixel_bias is not None,
            NEEDS_X=needs_x,
            NEEDS_KEYS=needs_keys,
            NEEDS_VALUES=needs_values,
            NEEDS_QUERIES=needs_queries,
            NEEDS_TOKEN_BIAS=needs_token_bias,
            NEEDS_RESIDUAL=needs_residual,
            NEEDS_PIXEL_BIAS=needs_pixel_bias,
            NEEDS_ATTENTION=needs_extra_values,
            **common.cut_options(plan),
            **common.options(setting, x.dtype),
            SMALL_PRECISION=library.small_precision(x.dtype),
            LIMIT=library.limit(x.dtype),
        )
        return (
            common.summed(part_dkeys, keys, shared=share_keys) if needs_keys else None,
            common.summed(part_dvalues, values, shared=share_values) if needs_values else None,
            common.summed(part_dqueries, queries, shared=share_queries) if needs_queries else None,
            None if token_bias is None else common.summed(part_dtoken_bias, token_bias, shared=share_bias),
        )

    kind, layout = library.kind(x.dtype), common.layout_name(*places)
    problem = Problem("project_tokenize_backward", kind, layout, widest, rows, pixels)
    dkeys, dvalues, dqueries, dtoken_bias = common.attempt(problem, x, run)
    weights = call.pixel_bias
    dlog = dpixel_bias.view(weights.shape) if needs_pixel_bias and weights is not None else None
    dextra_values = None
    if needs_extra_values:
        dextra_values = common.extra_values_gradient(attention, grad_tokens[..., out_channels:].to(sums))
    return ProjectTokenizeGradients(
        x=dx, keys=dkeys, values=dvalues, queries=dqueries, token_bias=dtoken_bias, residual=dresidual,
        pixel_bias=dlog, extra_values=dextra_values,
    )  # fmt: skip

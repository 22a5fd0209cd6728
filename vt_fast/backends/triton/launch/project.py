"""Launching project's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.contract import Project, ProjectBackward, ProjectGradients
from vt_fast.backends.triton import library, operands
from vt_fast.backends.triton.arithmetic import ceil_div
from vt_fast.backends.triton.launch import common
from vt_fast.backends.triton.launcher import launch
from vt_fast.backends.triton.maps import Placed, alignment
from vt_fast.backends.triton.plan import cut
from vt_fast.backends.triton.settings import KEEP, Problem, Setting
from vt_fast.kernels.project import project_forward
from vt_fast.kernels.project_backward import project_backward as backward_kernel
from vt_fast.layout import channel_count, empty_map_like, pixel_count
from vt_fast.precision import compute_dtype


def project(call: Project) -> Tensor:
    """The map."""
    x, num_heads = call.x, call.num_heads
    pixels, channels = pixel_count(x), channel_count(x)
    tokens, out_channels = call.values.shape[-2:]
    widest = max(channels, out_channels)
    y = empty_map_like(x, out_channels)
    shape = common.row_shape(num_heads, tokens)
    place, out = Placed.of(x), Placed.of(y)
    base = place if call.residual is None else Placed.of(call.residual)
    align = alignment(place, base, out)
    keys, keys_batch = operands.rows(call.keys)
    values, values_batch = operands.rows(call.values)

    def run(setting: Setting) -> None:
        launch(
            project_forward,
            (ceil_div(pixels, setting.tile) * x.shape[0],),
            *place.arguments(align),
            keys,
            keys_batch,
            values,
            values_batch,
            *operands.biases(call.token_bias, x),
            *base.arguments(align),
            *out.arguments(align),
            *common.shape_arguments(pixels, align, place, base, out),
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=common.pixel_align(place, pixels, align),
            R_LAYOUT=base.layout,
            Y_LAYOUT=out.layout,
            WIDE=common.wide(pixels, widest, place, base, out),
            **shape,
            CHANNELS=channels,
            OUT_CHANNELS=out_channels,
            HAS_TOKEN_BIAS=call.token_bias is not None,
            HAS_RESIDUAL=call.residual is not None,
            RESIDUAL_INPUT=call.residual_is_input,
            ACC=common.acc(x.dtype),
            KEEP=call.residual_is_input and setting.form == KEEP,
            **common.options(setting, x.dtype),
            LIMIT=library.limit(x.dtype),
        )

    rows = shape["HEADS_PADDED"] * shape["TOKENS_PADDED"]
    kind, layout = library.kind(x.dtype), common.layout_name(place, base, out)
    common.attempt(Problem("project_forward", kind, layout, widest, rows, pixels), x, run)
    return y


def project_backward(call: ProjectBackward) -> ProjectGradients:
    """The gradients that are needed."""
    x, num_heads = call.x, call.num_heads
    needs_x, needs_keys, needs_values, needs_token_bias = call.needs
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    tokens, out_channels = call.values.shape[-2:]
    widest = max(channels, out_channels)
    sums = compute_dtype(x.dtype)
    shape = common.row_shape(num_heads, tokens)
    grad = call.grad_map.to(x.dtype)
    dx = torch.empty_like(x) if needs_x else None
    arriving, place, out = Placed.of(grad), Placed.of(x), Placed.of(x if dx is None else dx)
    align = alignment(arriving, place, out)
    keys, keys_batch = operands.rows(call.keys)
    values, values_batch = operands.rows(call.values)
    share_keys, share_values = call.keys.dim() == 2, call.values.dim() == 2
    token_bias = call.token_bias if needs_token_bias else None
    share_bias = token_bias is not None and token_bias.dim() == 1

    def run(setting: Setting) -> tuple[Tensor | None, ...]:
        left = 4 * batch * tokens * (num_heads * channels * needs_keys + out_channels * needs_values)
        plan = cut(setting, x, pixels, widest, batch, left)

        def parts(operand: Tensor, shared: bool, needed: bool, *sizes: int) -> Tensor:
            dtype = common.part_dtype(plan, operand, shared=shared, sums=sums)
            return x.new_empty((batch, plan.parts, *sizes) if needed else 0, dtype=dtype)

        part_dkeys = parts(keys, share_keys, needs_keys, num_heads * tokens, channels)
        part_dvalues = parts(values, share_values, needs_values, tokens, out_channels)
        part_dtoken_bias = parts(
            keys if token_bias is None else token_bias, share_bias, needs_token_bias, num_heads * tokens
        )
        launch(
            backward_kernel,
            (plan.blocks * plan.parts * batch,),
            *arriving.arguments(align),
            *place.arguments(align),
            keys,
            keys_batch,
            values,
            values_batch,
            *operands.biases(call.token_bias, x),
            *out.arguments(align),
            part_dkeys,
            part_dvalues,
            part_dtoken_bias,
            *common.shape_arguments(pixels, align, place, arriving, out),
            plan.parts,
            plan.each,
            G_LAYOUT=arriving.layout,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=common.pixel_align(place, pixels, align),
            DX_LAYOUT=out.layout,
            WIDE=common.wide(pixels, widest, arriving, place, out),
            **shape,
            CHANNELS=channels,
            OUT_CHANNELS=out_channels,
            HAS_TOKEN_BIAS=call.token_bias is not None,
            RESIDUAL_INPUT=call.residual_is_input,
            NEEDS_X=needs_x,
            NEEDS_KEYS=needs_keys,
            NEEDS_VALUES=needs_values,
            NEEDS_TOKEN_BIAS=needs_token_bias,
            ACC=common.acc(x.dtype),
            **common.cut_options(plan),
            **common.options(setting, x.dtype),
            LIMIT=library.limit(x.dtype),
        )
        return (
            common.summed(part_dkeys, keys, shared=share_keys) if needs_keys else None,
            common.summed(part_dvalues, values, shared=share_values) if needs_values else None,
            None if token_bias is None else common.summed(part_dtoken_bias, token_bias, shared=share_bias),
        )

    rows = shape["HEADS_PADDED"] * shape["TOKENS_PADDED"]
    kind, layout = library.kind(x.dtype), common.layout_name(arriving, place, out)
    problem = Problem("project_backward", kind, layout, widest, rows, pixels)
    dkeys, dvalues, dtoken_bias = common.attempt(problem, x, run)
    return ProjectGradients(x=dx, keys=dkeys, values=dvalues, token_bias=dtoken_bias)

"""Launching project's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.backends.contract import Project, ProjectBackward, ProjectGradients
from vt_fast.backends.triton import library, operands
from vt_fast.backends.triton.launch.tokenize import common, pixel_align, shape_arguments, summed
from vt_fast.backends.triton.launcher import launch
from vt_fast.backends.triton.maps import Placed, alignment
from vt_fast.backends.triton.plan import ceil_div, power_of_two, setting, splits
from vt_fast.checks import channel_count, pixel_count
from vt_fast.kernels.project import project_forward
from vt_fast.kernels.project_backward import project_backward as backward_kernel
from vt_fast.layout import empty_map_like
from vt_fast.precision import compute_dtype

_INT32 = 2**31 - 1


def row_shape(heads: int, tokens: int) -> dict[str, int]:
    """Heads and tokens, and what they are padded to."""
    return {
        "HEADS": heads,
        "HEADS_PADDED": power_of_two(heads),
        "TOKENS": tokens,
        "TOKENS_PADDED": power_of_two(tokens, 16),
    }


def acc(dtype: torch.dtype) -> Any:
    """The dtype of sums, as Triton names it."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def project(call: Project) -> Tensor:
    """The map."""
    x, heads = call.x, call.heads
    pixels, channels = pixel_count(x), channel_count(x)
    tokens, out_channels = call.values.shape[-2:]
    y = empty_map_like(x, out_channels)
    shape = row_shape(heads, tokens)
    rows = shape["HEADS_PADDED"] * shape["TOKENS_PADDED"]
    plan = setting(max(channels, out_channels), rows, x.dtype, backward=False)
    place, out = Placed.of(x), Placed.of(y)
    base = place if call.residual is None else Placed.of(call.residual)
    align = alignment(place, base, out)
    keys, keys_batch = operands.rows(call.keys)
    values, values_batch = operands.rows(call.values)
    chunks = ceil_div(channels, plan.chunk)
    with torch.cuda.device_of(x):
        launch(
            project_forward,
            (ceil_div(pixels, plan.tile), x.shape[0]),
            *place.arguments(align),
            keys,
            keys_batch,
            values,
            values_batch,
            *operands.biases(call.bias, x),
            *base.arguments(align),
            *out.arguments(align),
            *shape_arguments(place, pixels, align),
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=pixel_align(place, pixels, align),
            R_LAYOUT=base.layout,
            Y_LAYOUT=out.layout,
            WIDE=max(p.extent(pixels, max(channels, out_channels)) for p in (place, base, out)) > _INT32,
            **shape,
            CHANNELS=channels,
            OUT_CHANNELS=out_channels,
            HAS_BIAS=call.bias is not None,
            HAS_RESIDUAL=call.residual is not None,
            RESIDUAL_INPUT=call.residual_input,
            ACC=acc(x.dtype),
            KEEP=call.residual_input and chunks * plan.chunk * plan.tile <= 32 << 10,
            **{key: value for key, value in common(plan, x.dtype).items() if key != "OWN"},
            LIMIT=library.limit(x.dtype),
        )
    return y


def project_backward(call: ProjectBackward) -> ProjectGradients:
    """The gradients that are needed."""
    x, heads = call.x, call.heads
    needs_x, needs_keys, needs_values, needs_bias = call.needs
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    tokens, out_channels = call.values.shape[-2:]
    dtype = compute_dtype(x.dtype)
    shape = row_shape(heads, tokens)
    rows = shape["HEADS_PADDED"] * shape["TOKENS_PADDED"]
    widest = max(channels, out_channels)
    plan = setting(widest, 2 * rows, x.dtype, backward=True)
    blocks = plan.blocks(widest)
    part = 4 * batch * tokens * (heads * channels + out_channels)
    count, each = splits(x, pixels, batch * blocks, plan.tile, part)
    grad = call.grad_map.to(x.dtype)
    dx = torch.empty_like(x) if needs_x else None
    part_dkeys = x.new_empty((count, batch, heads * tokens, channels) if needs_keys else 0, dtype=dtype)
    part_dvalues = x.new_empty((count, batch, tokens, out_channels) if needs_values else 0, dtype=dtype)
    part_dbias = x.new_empty((count, batch, heads * tokens) if needs_bias else 0, dtype=dtype)
    arriving, place, out = Placed.of(grad), Placed.of(x), Placed.of(x if dx is None else dx)
    align = alignment(arriving, place, out)
    keys, keys_batch = operands.rows(call.keys)
    values, values_batch = operands.rows(call.values)
    with torch.cuda.device_of(x):
        launch(
            backward_kernel,
            (count, batch, blocks),
            *arriving.arguments(align),
            *place.arguments(align),
            keys,
            keys_batch,
            values,
            values_batch,
            *operands.biases(call.bias, x),
            *out.arguments(align),
            part_dkeys,
            part_dvalues,
            part_dbias,
            *shape_arguments(place, pixels, align),
            each,
            G_LAYOUT=arriving.layout,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=pixel_align(place, pixels, align),
            DX_LAYOUT=out.layout,
            WIDE=max(p.extent(pixels, widest) for p in (arriving, place, out)) > _INT32,
            **shape,
            CHANNELS=channels,
            OUT_CHANNELS=out_channels,
            HAS_BIAS=call.bias is not None,
            RESIDUAL_INPUT=call.residual_input,
            NEEDS_X=needs_x,
            NEEDS_KEYS=needs_keys,
            NEEDS_VALUES=needs_values,
            NEEDS_BIAS=needs_bias,
            ACC=acc(x.dtype),
            **common(plan, x.dtype),
            LIMIT=library.limit(x.dtype),
        )
    bias = call.bias
    return ProjectGradients(
        x=dx,
        keys=summed(part_dkeys, batch, call.keys) if needs_keys else None,
        values=summed(part_dvalues, batch, call.values) if needs_values else None,
        bias=bias_gradient(part_dbias, bias) if needs_bias and bias is not None else None,
    )


def bias_gradient(parts: Tensor, bias: Tensor) -> Tensor:
    """Parts (splits, B, rows) summed up, over the batch too where it shares the bias."""
    whole = parts.sum(0)
    return whole.sum(0) if bias.dim() == 1 else whole

"""Launching project_tokenize's kernels, and the small products before and after them."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.contract import (
    ProjectTokenize,
    ProjectTokenizeBackward,
    ProjectTokenizeGradients,
)
from vt_fast.backends.triton import library, operands
from vt_fast.backends.triton.launch.project import bias_gradient, row_shape
from vt_fast.backends.triton.launch.tokenize import (
    Parts,
    common,
    deltas,
    pixel_align,
    position_gradient,
    shape_arguments,
    summed,
)
from vt_fast.backends.triton.launcher import launch
from vt_fast.backends.triton.maps import Placed, alignment
from vt_fast.backends.triton.plan import power_of_two, setting, splits
from vt_fast.checks import channel_count, pixel_count
from vt_fast.kernels.project_tokenize import project_tokenize_forward
from vt_fast.kernels.project_tokenize_backward import project_tokenize_backward as backward_kernel
from vt_fast.layout import empty_map_like
from vt_fast.precision import compute_dtype

_INT32 = 2**31 - 1


def project_tokenize(call: ProjectTokenize) -> tuple[Tensor | None, Tensor, Tensor]:
    """The map (None unless wanted), its tokens (B, Lq, D + P) and lse (B, Lq) in the compute dtype."""
    x, heads = call.x, call.heads
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    tokens, out_channels = call.values.shape[-2:]
    count_queries = call.queries.shape[-2]
    columns = 0 if call.position is None else call.position.shape[1]
    y = empty_map_like(x, out_channels) if call.return_map else None
    shape = row_shape(heads, tokens)
    padded = power_of_two(count_queries, 16)
    plan = setting(out_channels, padded, x.dtype, backward=False)
    blocks = plan.blocks(out_channels)
    width = out_channels + columns + heads * tokens
    count, each = splits(x, pixels, batch * blocks, plan.tile, 4 * batch * count_queries * width)
    parts = Parts(x, batch, count, count_queries, width)
    value_blocks = operands.value_blocks(call.values, call.bias, heads, compute_dtype(x.dtype))
    mixed = operands.mix(value_blocks, call.queries, batch)
    place, out = Placed.of(x), Placed.of(x if y is None else y)
    base = place if call.residual is None else Placed.of(call.residual)
    align = alignment(place, base, out)
    keys, keys_batch = operands.rows(call.keys)
    values, values_batch = operands.rows(call.values)
    queries, queries_batch = operands.rows(call.queries)
    with torch.cuda.device_of(x):
        launch(
            project_tokenize_forward,
            (count, batch, blocks),
            *place.arguments(align),
            keys,
            keys_batch,
            values,
            values_batch,
            *operands.biases(call.bias, x),
            *base.arguments(align),
            queries,
            queries_batch,
            mixed,
            operands.pixels(call.mask, x),
            operands.pixels(call.log_weights, x),
            x if call.position is None else call.position.contiguous(),
            *out.arguments(align),
            *parts.tensors,
            *shape_arguments(place, pixels, align),
            each,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=pixel_align(place, pixels, align),
            R_LAYOUT=base.layout,
            Y_LAYOUT=out.layout,
            WIDE=max(p.extent(pixels, max(channels, out_channels)) for p in (place, base, out)) > _INT32,
            **shape,
            QUERIES=count_queries,
            QUERIES_PADDED=padded,
            CHANNELS=channels,
            OUT_CHANNELS=out_channels,
            COLUMNS=columns,
            COLUMNS_PADDED=power_of_two(columns, 16),
            HAS_BIAS=call.bias is not None,
            HAS_RESIDUAL=call.residual is not None,
            RESIDUAL_INPUT=call.residual_input,
            HAS_MASK=call.mask is not None,
            HAS_LOG_WEIGHTS=call.log_weights is not None,
            STORE=call.return_map,
            **common(plan, x.dtype),
            SMALL_PRECISION=library.small_precision(x.dtype),
            LIMIT=library.limit(x.dtype),
        )
        pooled, lse = parts.combined(1, out_channels, columns + heads * tokens)
    of_rows = pooled[..., out_channels + columns :]
    result = pooled[..., : out_channels + columns].contiguous()
    result[..., :out_channels] += operands.unmix(of_rows, value_blocks)
    return y, result, lse


def project_tokenize_backward(call: ProjectTokenizeBackward) -> ProjectTokenizeGradients:
    """The gradients that are needed."""
    x, heads, residual = call.x, call.heads, call.residual
    needs_x, needs_keys, needs_values, needs_queries = call.needs[:4]
    needs_bias, needs_residual, needs_log_weights, needs_position = call.needs[4:]
    needs_residual = needs_residual and residual is not None
    batch, pixels, channels = x.shape[0], pixel_count(x), channel_count(x)
    tokens, out_channels = call.values.shape[-2:]
    count_queries = call.queries.shape[-2]
    columns = 0 if call.position is None else call.position.shape[1]
    dtype = compute_dtype(x.dtype)
    shape = row_shape(heads, tokens)
    rows = shape["HEADS_PADDED"] * shape["TOKENS_PADDED"]
    padded = power_of_two(count_queries, 16)
    widest = max(channels, out_channels)
    plan = setting(widest, 2 * rows + padded, x.dtype, backward=True)
    blocks = plan.blocks(widest)
    of_rows = 2 * heads * tokens * count_queries
    part = 4 * batch * (heads * tokens * channels + (tokens + count_queries) * out_channels + of_rows)
    count, each = splits(x, pixels, batch * blocks, plan.tile, part)

    def parts(needed: bool, *sizes: int) -> Tensor:
        return x.new_empty((count, batch, *sizes) if needed else 0, dtype=dtype)

    dx = torch.empty_like(x) if needs_x else None
    dresidual = torch.empty_like(residual) if residual is not None and needs_residual else None
    part_dkeys = parts(needs_keys, heads * tokens, channels)
    part_dvalues = parts(needs_values, tokens, out_channels)
    part_dbias = parts(needs_bias, heads * tokens)
    part_dqueries = parts(needs_queries, count_queries, out_channels)
    part_rows = parts(needs_values or needs_queries, 2, heads * tokens, count_queries)
    dlog_weights = x.new_empty((batch, pixels) if needs_log_weights else 0, dtype=dtype)
    attention = x.new_empty((batch, pixels, count_queries) if needs_position else 0, dtype=dtype)

    grad_tokens = call.grad_tokens.to(x.dtype).contiguous()
    delta = deltas(call.grad_tokens.to(dtype), call.tokens.to(dtype), call.grad_lse, 1)
    of_values = operands.value_blocks(call.values, call.bias, heads, dtype)
    grad_channels = grad_tokens[..., :out_channels]
    mixed = operands.mix(of_values, call.queries, batch)
    mixed_grads = operands.mix(of_values, grad_channels, batch)
    place, out = Placed.of(x), Placed.of(x if dx is None else dx)
    arriving = place if call.grad_map is None else Placed.of(call.grad_map.to(x.dtype))
    base = place if residual is None else Placed.of(residual)
    to_base = place if dresidual is None else Placed.of(dresidual)
    places = (arriving, place, base, out, to_base)
    align = alignment(*places)
    keys, keys_batch = operands.rows(call.keys)
    values, values_batch = operands.rows(call.values)
    queries, queries_batch = operands.rows(call.queries)
    with torch.cuda.device_of(x):
        launch(
            backward_kernel,
            (count, batch, blocks),
            *arriving.arguments(align),
            grad_tokens,
            *place.arguments(align),
            keys,
            keys_batch,
            values,
            values_batch,
            *operands.biases(call.bias, x),
            *base.arguments(align),
            queries,
            queries_batch,
            mixed,
            mixed_grads,
            operands.pixels(call.mask, x),
            operands.pixels(call.log_weights, x),
            x if call.position is None else call.position.contiguous(),
            call.lse.contiguous(),
            delta,
            *out.arguments(align),
            *to_base.arguments(align),
            part_dkeys,
            part_dvalues,
            part_dbias,
            part_dqueries,
            part_rows,
            dlog_weights,
            attention,
            *shape_arguments(place, pixels, align),
            each,
            G_LAYOUT=arriving.layout,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=pixel_align(place, pixels, align),
            R_LAYOUT=base.layout,
            DX_LAYOUT=out.layout,
            DR_LAYOUT=to_base.layout,
            WIDE=max(p.extent(pixels, widest) for p in places) > _INT32,
            **shape,
            QUERIES=count_queries,
            QUERIES_PADDED=padded,
            CHANNELS=channels,
            OUT_CHANNELS=out_channels,
            COLUMNS=columns,
            COLUMNS_PADDED=power_of_two(columns, 16),
            HAS_GRAD=call.grad_map is not None,
            HAS_BIAS=call.bias is not None,
            HAS_RESIDUAL=residual is not None,
            RESIDUAL_INPUT=call.residual_input,
            HAS_MASK=call.mask is not None,
            HAS_LOG_WEIGHTS=call.log_weights is not None,
            NEEDS_X=needs_x,
            NEEDS_KEYS=needs_keys,
            NEEDS_VALUES=needs_values,
            NEEDS_QUERIES=needs_queries,
            NEEDS_BIAS=needs_bias,
            NEEDS_RESIDUAL=needs_residual,
            NEEDS_LOG_WEIGHTS=needs_log_weights,
            NEEDS_ATTENTION=needs_position,
            **common(plan, x.dtype),
            SMALL_PRECISION=library.small_precision(x.dtype),
            LIMIT=library.limit(x.dtype),
        )
    dvalues = dqueries = None
    if needs_values or needs_queries:
        pooled, inner = part_rows.sum(0).unbind(1)  # P^T A and P^T dS, (B, heads * L, Lq)
        if needs_values:
            through = torch.cat([pooled, inner], 2)
            both = torch.cat([grad_channels, call.queries.expand(batch, -1, -1)], 1)
            dvalues = part_dvalues.sum(0) + operands.gather_rows(through, both, heads)
            if call.values.dim() == 2:
                dvalues = dvalues.sum(0)
        if needs_queries:
            dqueries = part_dqueries.sum(0) + operands.unmix(inner.mT, of_values)
            if call.queries.dim() == 2:
                dqueries = dqueries.sum(0)
    bias, weights = call.bias, call.log_weights
    return ProjectTokenizeGradients(
        x=dx,
        keys=summed(part_dkeys, batch, call.keys) if needs_keys else None,
        values=dvalues,
        queries=dqueries,
        bias=bias_gradient(part_dbias, bias) if needs_bias and bias is not None else None,
        residual=dresidual,
        log_weights=dlog_weights.view(weights.shape) if needs_log_weights and weights is not None else None,
        position=position_gradient(attention, call.grad_tokens[..., out_channels:].to(dtype))
        if needs_position
        else None,
    )

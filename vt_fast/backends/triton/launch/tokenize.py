"""Launching tokenize's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.backends.contract import Tokenize, TokenizeBackward, TokenizeGradients
from vt_fast.backends.triton import library, operands
from vt_fast.backends.triton.launcher import launch
from vt_fast.backends.triton.maps import PIXELS_UNIT, Placed, alignment
from vt_fast.backends.triton.plan import Setting, ceil_div, power_of_two, setting, splits
from vt_fast.checks import channel_count, pixel_count
from vt_fast.kernels.combine import combine
from vt_fast.kernels.tokenize import tokenize_forward
from vt_fast.kernels.tokenize_backward import tokenize_backward as backward_kernel
from vt_fast.precision import compute_dtype

_INT32 = 2**31 - 1


def tokenize(call: Tokenize) -> tuple[Tensor, Tensor]:
    """Tokens (B, L, C + P) and lse (B, heads * L), in the compute dtype."""
    x, heads = call.x, call.heads
    rows, pixels = call.queries.shape[-2] // heads, pixel_count(x)
    channels = channel_count(x) // heads
    columns = 0 if call.position is None else call.position.shape[1]
    padded = power_of_two(rows, 16)
    plan = setting(channels, padded, x.dtype, backward=False)
    items = x.shape[0] * heads
    blocks = plan.blocks(channels)
    part = 4 * items * rows * (channels + columns)
    count, each = splits(x, pixels, items * blocks, plan.tile, part)
    parts = Parts(x, items, count, rows, channels + columns)
    place = Placed.of(x)
    align = alignment(place)
    with torch.cuda.device_of(x):
        queries, queries_batch = operands.rows(call.queries)
        launch(
            tokenize_forward,
            (count, items, blocks),
            *place.arguments(align),
            queries,
            queries_batch,
            operands.pixels(call.mask, x),
            operands.pixels(call.log_weights, x),
            x if call.position is None else call.position.contiguous(),
            *parts.tensors,
            *shape_arguments(place, pixels, align),
            each,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=pixel_align(place, pixels, align),
            WIDE=place.extent(pixels, channel_count(x)) > _INT32,
            HEADS=heads,
            TOKENS=rows,
            TOKENS_PADDED=padded,
            CHANNELS=channels,
            COLUMNS=columns,
            COLUMNS_PADDED=power_of_two(columns, 16),
            HAS_MASK=call.mask is not None,
            HAS_LOG_WEIGHTS=call.log_weights is not None,
            **common(plan, x.dtype),
            LIMIT=library.limit(x.dtype),
        )
        return parts.combined(heads, channels, columns)


class Parts:
    """What the programs of a sample's parts leave behind, see vt_fast.kernels.tokenize."""

    def __init__(self, x: Tensor, items: int, count: int, rows: int, width: int) -> None:
        dtype = compute_dtype(x.dtype)
        self.items, self.count, self.rows, self.width = items, count, rows, width
        self.tensors = (
            x.new_empty((items, count, rows, width), dtype=dtype),
            x.new_empty((items, count, rows), dtype=dtype),
            x.new_empty((items, count, rows), dtype=dtype),
            x.new_empty((items, count, rows), dtype=dtype),
            x.new_empty((items, count), dtype=torch.int32),
        )
        self.limit = library.limit(x.dtype)

    def combined(self, heads: int, channels: int, columns: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, rows, heads * channels + columns) and lse (B, heads * rows)."""
        like = self.tensors[0]
        batch = self.items // heads
        tokens = like.new_empty((batch, self.rows, heads * channels + columns))
        lse = like.new_empty((batch, heads * self.rows))
        block = min(256, power_of_two(self.width, 16))
        launch(
            combine,
            (self.items, self.rows, ceil_div(self.width, block)),
            *self.tensors,
            tokens,
            lse,
            self.count,
            HEADS=heads,
            TOKENS=self.rows,
            CHANNELS=channels,
            COLUMNS=columns,
            AT_ONCE=min(16, power_of_two(self.count)),
            BLOCK=block,
            LIMIT=self.limit,
        )
        return tokens, lse


def tokenize_backward(call: TokenizeBackward) -> TokenizeGradients:
    """The gradients that are needed."""
    x, heads = call.x, call.heads
    needs_x, needs_queries, needs_log_weights, needs_position = call.needs
    batch, pixels = x.shape[0], pixel_count(x)
    rows, channels = call.queries.shape[-2] // heads, channel_count(x) // heads
    columns = 0 if call.position is None else call.position.shape[1]
    dtype = compute_dtype(x.dtype)
    padded = power_of_two(rows, 16)
    plan = setting(channels, padded, x.dtype, backward=True)
    items = batch * heads
    blocks = plan.blocks(channels)
    count, each = splits(x, pixels, items * blocks, plan.tile, 4 * items * rows * channels)
    grad_tokens = call.grad_tokens.to(x.dtype).contiguous()
    delta = deltas(call.grad_tokens.to(dtype), call.tokens.to(dtype), call.grad_lse, heads)
    dx = torch.empty_like(x) if needs_x else None
    part_dqueries = x.new_empty((count, items, rows, channels) if needs_queries else 0, dtype=dtype)
    dlog_weights = x.new_empty((heads, batch, pixels) if needs_log_weights else 0, dtype=dtype)
    attention = x.new_empty((batch, pixels, rows) if needs_position else 0, dtype=dtype)
    place, out = Placed.of(x), Placed.of(x if dx is None else dx)
    align = alignment(place, out)
    with torch.cuda.device_of(x):
        queries, queries_batch = operands.rows(call.queries)
        launch(
            backward_kernel,
            (count, items, blocks),
            *place.arguments(align),
            queries,
            queries_batch,
            grad_tokens,
            operands.pixels(call.mask, x),
            operands.pixels(call.log_weights, x),
            x if call.position is None else call.position.contiguous(),
            call.lse.contiguous(),
            delta,
            *out.arguments(align),
            part_dqueries,
            dlog_weights,
            attention,
            *shape_arguments(place, pixels, align),
            each,
            LAYOUT=place.layout,
            ALIGN=align,
            PIXEL_ALIGN=pixel_align(place, pixels, align),
            DX_LAYOUT=out.layout,
            WIDE=max(each.extent(pixels, channel_count(x)) for each in (place, out)) > _INT32,
            HEADS=heads,
            TOKENS=rows,
            TOKENS_PADDED=padded,
            CHANNELS=channels,
            COLUMNS=columns,
            COLUMNS_PADDED=power_of_two(columns, 16),
            HAS_MASK=call.mask is not None,
            HAS_LOG_WEIGHTS=call.log_weights is not None,
            NEEDS_X=needs_x,
            NEEDS_QUERIES=needs_queries,
            NEEDS_LOG_WEIGHTS=needs_log_weights,
            NEEDS_ATTENTION=needs_position,
            **common(plan, x.dtype),
        )
    dposition = None
    if needs_position:
        dposition = position_gradient(attention, call.grad_tokens[..., channels:].to(dtype))
    return TokenizeGradients(
        x=dx,
        queries=summed(part_dqueries, batch, call.queries) if needs_queries else None,
        log_weights=dlog_weights.sum(0).view(call.log_weights.shape)
        if needs_log_weights and call.log_weights is not None
        else None,
        position=dposition,
    )


def deltas(grad_tokens: Tensor, tokens: Tensor, grad_lse: Tensor | None, heads: int) -> Tensor:
    """delta (B, heads * L): what the mean of A * dA over the pixels is, less the gradient of lse."""
    products = grad_tokens.double() * tokens.double()
    if heads > 1:
        products = products.unflatten(-1, (heads, -1)).transpose(1, 2)
    delta = products.sum(-1).flatten(1)
    if grad_lse is not None:
        delta = delta - grad_lse
    return delta.to(tokens.dtype).contiguous()


def summed(parts: Tensor, batch: int, operand: Tensor) -> Tensor:
    """Parts (splits, B * ..., ...) summed up, over the batch too where it shares the operand."""
    whole = parts.sum(0).unflatten(0, (batch, -1))
    if operand.dim() == 2:
        whole = whole.sum(0)
    result: Tensor = whole.reshape(operand.shape)
    return result


def position_gradient(attention: Tensor, grad_entries: Tensor) -> Tensor:
    """(N, P) from weights (B, N, L) and the gradients (B, L, P) of the tokens' columns."""
    return torch.einsum("bnl,blp->np", attention, grad_entries)


def shape_arguments(place: Placed, pixels: int, align: int) -> tuple[int, int]:
    """Pixels, and pixels in a row."""
    return pixels // pixel_align(place, pixels, align), place.width


def pixel_align(place: Placed, pixels: int, align: int) -> int:
    """What a kernel multiplies the number of pixels with, so that it knows how wide masks may be."""
    while pixels % align:
        align //= 2
    return align if place.layout == PIXELS_UNIT else 1


def common(plan: Setting, dtype: torch.dtype) -> dict[str, object]:
    """What the kernels with sums over pixels are all told."""
    return {
        "TILE": plan.tile,
        "CHUNK": plan.chunk,
        "OWN": plan.own,
        "PRECISION": library.precision(dtype),
        "WIDEN": library.widens(dtype),
        **plan.options,
    }

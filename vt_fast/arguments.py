"""The arguments of each public op, checked together; :mod:`vt_fast.checks` has the single checks.

Every function here takes x after :func:`vt_fast.checks.feature_map` has passed it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.checks import (
    FLOATING,
    OPTIONAL,
    bank,
    channel_count,
    divides,
    head_count,
    map_shape,
    operand,
    pixel_count,
    same_device,
    shape,
    tensor,
)


def tokenize(x: Tensor, queries: Any, heads: Any, mask: Any, log_weights: Any, position: Any) -> None:
    """All arguments of tokenize but x itself.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device.
    """
    head_count(heads)
    channels = channel_count(x)
    divides(heads, channels, "the channels of `x`, C")
    form = "L, C" if heads == 1 else "heads * L, C / heads"
    bank("queries", queries, x, width=channels // heads, heads=heads, form=form)
    _pixel_options(x, mask, log_weights, position, heads)


def project(x: Tensor, keys: Any, values: Any, heads: Any, bias: Any, residual: Any) -> None:
    """All arguments of project but x itself.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device.
    """
    head_count(heads)
    form = "L, C" if heads == 1 else "heads * L, C"
    bank("keys", keys, x, width=channel_count(x), heads=heads, form=form)
    _token_values(values, keys, x, heads)
    if bias is not None:
        _token_bias(bias, keys, x, heads)
    _residual_map(residual, x, values.shape[-1])


def project_tokenize(
    x: Tensor,
    keys: Any,
    values: Any,
    queries: Any,
    heads: Any,
    bias: Any,
    residual: Any,
    mask: Any,
    log_weights: Any,
    position: Any,
) -> None:
    """All arguments of project_tokenize but x itself.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device.
    """
    project(x, keys, values, heads, bias, residual)
    origin = ", the channels of `values`,"
    bank("queries", queries, x, width=values.shape[-1], heads=1, form="Lq, D", origin=origin)
    _pixel_options(x, mask, log_weights, position, 1)


def _pixel_options(x: Tensor, mask: Any, log_weights: Any, position: Any, heads: int) -> None:
    if mask is not None:
        _pixel_mask(mask, x)
    if log_weights is not None:
        _pixel_weights(log_weights, x)
    if position is not None:
        _position_table(position, x, heads)


def _token_values(values: Any, keys: Tensor, x: Tensor, heads: int) -> None:
    """Values (L, D) or (B, L, D) for keys of heads * L rows, D a multiple of heads.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    operand("values", values, x)
    tokens = keys.shape[-2] // heads
    if (
        values.dim() not in (2, 3)
        or values.shape[-1] == 0
        or values.shape[-2] != tokens
        or (values.dim() == 3 and values.shape[0] != x.shape[0])
    ):
        raise ValueError(
            f"`values` must be (L, D) or (B, L, D) with B = {x.shape[0]}, L = {tokens} (`keys` has "
            f"{keys.shape[-2]} rows, `heads` is {heads}) and D not 0, got {shape(values)}"
        )
    divides(heads, values.shape[-1], "the channels of `values`, D")


def _token_bias(bias: Any, keys: Tensor, x: Tensor, heads: int) -> None:
    """A bias of x's dtype for each key row: (R,) or (B, R).

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    operand("bias", bias, x, OPTIONAL)
    rows, batch = keys.shape[-2], x.shape[0]
    # No comparison of the batch with the rows, which an exporter would turn into a constraint.
    if bias.dim() not in (1, 2) or bias.shape[-1] != rows or (bias.dim() == 2 and bias.shape[0] != batch):
        count = "L" if heads == 1 else "heads * L"
        raise ValueError(
            f"`bias` must be ({count},) or (B, {count}) with B = {batch}, {count} = {rows}, got {shape(bias)}"
        )


def _residual_map(residual: Any, x: Tensor, channels: int) -> None:
    """``"input"`` (with as many value channels as x has), None, or a map like x with ``channels``.

    Raises:
        TypeError: something else, or a map of another dtype than x.
        ValueError: another string, another device or shape.
    """
    if residual is None:
        return
    if isinstance(residual, str):
        if residual != "input":
            raise ValueError(f'`residual` must be "input", None or a torch.Tensor, got "{residual}"')
        if channels != channel_count(x):
            raise ValueError(
                '`residual="input"` needs values with as many channels as `x`: '
                f"`values` must have D = C = {channel_count(x)}, got D = {channels}"
            )
        return
    if not isinstance(residual, Tensor):
        raise TypeError(f'`residual` must be "input", None or a torch.Tensor, got {type(residual).__name__}')
    operand("residual", residual, x)
    expected = map_shape(x, channels)
    if tuple(residual.shape) != expected:
        form = "(B, N, D)" if x.dim() == 3 else "(B, D, H, W)"
        sizes = "(" + ", ".join(str(size) for size in expected) + ")"
        raise ValueError(f"`residual` must be {form} = {sizes}, got {shape(residual)}")


def _pixel_mask(mask: Any, x: Tensor) -> None:
    """A bool tensor (B, N) or, for a (B, C, H, W) map, also (B, H, W).

    Raises:
        TypeError: no dense tensor, or not bool.
        ValueError: another device or shape.
    """
    tensor("mask", mask, OPTIONAL)
    if mask.dtype != torch.bool:
        raise TypeError(
            "`mask` must be a bool tensor, True where the pixel takes part "
            f"(soft or differentiable masks: `log_weights`), got {mask.dtype}"
        )
    same_device("mask", mask, x)
    _per_pixel("mask", mask, x)


def _pixel_weights(log_weights: Any, x: Tensor) -> None:
    """A tensor of x's dtype, (B, N) or, for a (B, C, H, W) map, also (B, H, W).

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    operand("log_weights", log_weights, x, OPTIONAL)
    _per_pixel("log_weights", log_weights, x)


def _per_pixel(name: str, value: Tensor, x: Tensor) -> None:
    batch, pixels = x.shape[0], pixel_count(x)
    if tuple(value.shape) == (batch, pixels):
        return
    if x.dim() == 4 and tuple(value.shape) == (batch, *x.shape[2:]):
        return
    form = f"(B, N) with B = {batch}, N = {pixels}"
    if x.dim() == 4:
        form = f"(B, N) or (B, H, W) with B = {batch}, H = {x.shape[2]}, W = {x.shape[3]}, N = H W = {pixels}"
    raise ValueError(f"`{name}` must be {form}, got {shape(value)}")


def _position_table(position: Any, x: Tensor, heads: int) -> None:
    """A table (N, P) of x's dtype, with one head only.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape, or more than one head.
    """
    operand("position", position, x, OPTIONAL)
    pixels = pixel_count(x)
    if position.dim() != 2 or position.shape[0] != pixels or position.shape[1] == 0:
        raise ValueError(
            f"`position` must be (N, P) with N = {pixels} and P at least 1, got {shape(position)}"
        )
    if heads != 1:
        raise ValueError(f"`heads` must be 1 where `position` is given, got {heads}")


def merge(tokens: Any, lse: Any) -> None:
    """The two arguments of ``merge``: tokens (S, B, L, C) and lse (S, B, heads * L).

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device or shape.
    """
    tensor("tokens", tokens)
    tensor("lse", lse)
    if tokens.dtype not in FLOATING:
        raise TypeError(f"`tokens` must be float16, bfloat16, float32 or float64, got {tokens.dtype}")
    expected = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    if lse.dtype != expected:
        raise TypeError(f"`lse` must be {expected} for {tokens.dtype} tokens, got {lse.dtype}")
    if lse.device != tokens.device:
        raise ValueError(f"`lse` must be on the device of `tokens` ({tokens.device}), got {lse.device}")
    if tokens.dim() != 4 or any(size == 0 for size in tokens.shape):
        raise ValueError(f"`tokens` must be (S, B, L, C), none of them 0, got {shape(tokens)}")
    count, channels = tokens.shape[2:]
    if (
        lse.dim() != 3
        or lse.shape[:2] != tokens.shape[:2]
        or lse.shape[2] == 0
        or lse.shape[2] % count != 0
        or channels % (lse.shape[2] // count) != 0
    ):
        raise ValueError(
            f"`lse` must be (S, B, heads * L) with S = {tokens.shape[0]}, B = {tokens.shape[1]}, L = {count} "
            f"and heads a divisor of C = {channels}, got {shape(lse)}"
        )

"""How a feature map lies in memory, and how one like it is made.

A map is (B, N, C), or (B, C, H, W) in any memory format. Both are worked on as pixels (B, N, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]


def channel_count(x: Tensor) -> int:
    """C of a map in either form."""
    return x.shape[-1] if x.dim() == 3 else x.shape[1]


def pixel_count(x: Tensor) -> int:
    """N of a map in either form."""
    return x.shape[1] if x.dim() == 3 else x.shape[2] * x.shape[3]


def map_shape(x: Tensor, channels: int) -> tuple[int, ...]:
    """The shape of a map like x with another number of channels."""
    return (*x.shape[:2], channels) if x.dim() == 3 else (x.shape[0], channels, *x.shape[2:])


def empty_map_like(x: Tensor, channels: int) -> Tensor:
    """An uninitialised map with ``channels`` channels, strided as ``torch.empty_like(x)`` would be.

    So a channels_last map gives a channels_last map, and a sliced or expanded one a dense map with
    its dimensions in the same order.
    """
    if channels == channel_count(x):
        return torch.empty_like(x)
    # empty_like goes by sizes and strides alone: ask it about a map of the new size with the old
    # strides. That one may overlap itself, so it exists on the meta device only.
    model = torch.empty_strided(map_shape(x, channels), x.stride(), dtype=x.dtype, device="meta")
    model = torch.empty_like(model)
    return torch.empty_strided(model.shape, model.stride(), dtype=x.dtype, device=x.device)


def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """`torch.unflatten`, which in a trace makes `torch.onnx.export(dynamo=False)` fix all other sizes."""
    if not is_tracing():
        return torch.unflatten(x, dim, sizes)
    dim %= x.dim()
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def as_pixels(feature_map: Tensor) -> Tensor:
    """(B, N, C) of a map in either form: a view wherever H and W can be merged, else a copy."""
    if feature_map.dim() == 3:
        return feature_map
    return feature_map.flatten(2).transpose(1, 2)


def merges(feature_map: Tensor) -> bool:
    """Whether :func:`as_pixels` is a view, so that what is written to it reaches the map."""
    if feature_map.dim() == 3:
        return True
    height, width = feature_map.shape[2:]
    return height == 1 or width == 1 or feature_map.stride(2) == width * feature_map.stride(3)


def per_pixel(value: Tensor | None) -> Tensor | None:
    """(B, N) of a mask or a bias given as (B, N) or (B, H, W)."""
    return value if value is None or value.dim() == 2 else value.flatten(1)

"""How a feature map lies in memory, and how one like it is made.

A map is (B, N, C), or (B, C, H, W) in any memory format. Both are worked on as pixels (B, N, C). Bags of
different sizes are (total, C), one after the other, with ``offsets`` (B + 1,); as pixels (1, total, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]


def is_dtensor(x: Any) -> bool:
    """Whether a value is a DTensor of PyTorch, whose module is not imported for the question."""
    kind = type(x)
    return kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed.")


def shards_pixels(x: Any) -> bool:
    """Whether x is a DTensor map, (B, N, C) or (B, C, H, W), whose pixels are sharded."""
    pixels = (2, 3) if is_dtensor(x) and x.dim() == 4 else (1,)
    return is_dtensor(x) and any(
        placement.is_shard() and placement.dim in pixels for placement in x.placements
    )


def channel_count(x: Tensor) -> int:
    """C of a map in any form."""
    return x.shape[1] if x.dim() == 4 else x.shape[-1]


def pixel_count(x: Tensor) -> int:
    """N of a map in any form; of bags all together."""
    return x.shape[2] * x.shape[3] if x.dim() == 4 else x.shape[-2]


def all_pixels(x: Tensor) -> int:
    """The pixels of all samples together."""
    return x.shape[0] if x.dim() == 2 else x.shape[0] * pixel_count(x)


def sample_count(x: Tensor, offsets: Tensor | None) -> int:
    """B of a map, or of bags."""
    return x.shape[0] if offsets is None else offsets.shape[0] - 1


def bag_bounds(offsets: Tensor, total: int) -> list[int]:
    """``offsets`` on the host, where the bags must cover the pixels.

    On other devices, where kernels cannot check that, they are clamped as kernels do it: the first to 0, the
    last to ``total``, and those between to what rises from 0 to ``total``.

    Raises:
        ValueError: on a CPU, they do not start at 0, fall, or do not end at ``total``.
    """
    bounds: list[int] = offsets.tolist()
    if offsets.device.type == "cpu":
        if bounds[0] != 0 or bounds[-1] != total or bounds != sorted(bounds):
            raise ValueError(
                f"`offsets` must start at 0, not fall, and end at the number of pixels {total}, got {bounds}"
            )
        return bounds
    least = 0
    for bag, bound in enumerate(bounds):
        least = bounds[bag] = min(max(bound, least), total)
    bounds[0], bounds[-1] = 0, total
    return bounds


def map_shape(x: Tensor, channels: int) -> tuple[int, ...]:
    """The shape of a map like x with another number of channels."""
    return (x.shape[0], channels, *x.shape[2:]) if x.dim() == 4 else (*x.shape[:-1], channels)


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
    if feature_map.dim() == 4:
        return feature_map.flatten(2).transpose(1, 2)
    return feature_map if feature_map.dim() == 3 else feature_map[None]


def merges(feature_map: Tensor) -> bool:
    """Whether :func:`as_pixels` is a view, so that what is written to it reaches the map."""
    if feature_map.dim() != 4:
        return True
    height, width = feature_map.shape[2:]
    return height == 1 or width == 1 or feature_map.stride(2) == width * feature_map.stride(3)


def per_pixel(value: Tensor | None) -> Tensor | None:
    """(B, N) of a mask or a bias given as (B, N) or (B, H, W); (1, total) of that of bags."""
    if value is None or value.dim() == 2:
        return value
    return value[None] if value.dim() == 1 else value.flatten(1)

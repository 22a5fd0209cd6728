"""Attention within windows: each pixel and the size x size pixels around it.

The windows are views of one padded map, one for each offset, so that nothing of size x size times the map's
size is made, neither in the forward pass nor for the backward pass. With ``unfold=True`` the windows are
gathered and multiplied as matrices: more memory, but FLOP counters see the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vt_fast import checks
from vt_fast.layout import unflatten
from vt_fast.nn.base import check_map


class WindowAttention(nn.Module):
    """Base class of the modules that attend to windows.

    Args:
        channels: C of the map.
        size: of the window, odd.
        unfold: see the module.

    Raises:
        ValueError: an even size, or a number below 1.
    """

    def __init__(self, channels: int, size: int, *, unfold: bool = False) -> None:
        super().__init__()
        checks.counts(channels=channels, size=size)
        checks.flag("unfold", unfold)
        if size % 2 == 0:
            raise ValueError(f"`size` must be odd, got {size}")
        self.channels, self.size, self.unfold = channels, size, unfold

    def _check(self, x: Any) -> None:
        check_map(x, self, self.channels)
        checks.map_size(x)


def views(x: Tensor, size: int, stride: int = 1, padding: str = "constant") -> list[Tensor]:
    """The map as seen at each of the size x size offsets, row by row.

    Args:
        x: (B, C, H, W).
        size: of the window. An even one reaches one pixel further down and to the right.
        stride: of the windows' centres.
        padding: "constant" for zeros, or another mode of `torch.nn.functional.pad`.

    Returns:
        size * size views (B, C, H / stride, W / stride), sizes rounded up.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0]]]])
        >>> [view.flatten().tolist() for view in views(x, 3)[3:6]]
        [[0.0, 1.0], [1.0, 2.0], [2.0, 0.0]]
    """
    before, (height, width) = (size - 1) // 2, x.shape[2:]
    padded = F.pad(x, (before, size - 1 - before) * 2, mode=padding)
    return [
        padded[:, :, row : row + height : stride, column : column + width : stride]
        for row in range(size)
        for column in range(size)
    ]


def products(queries: Tensor, keys: Tensor, num_heads: int, size: int, *, unfold: bool = False) -> Tensor:
    """Dot products of each pixel with the pixels of its window, zeros outside of the map.

    Args:
        queries: (B, C, H, W).
        keys: (B, C, H, W).
        num_heads: head h compares channel block h.
        size: of the window.
        unfold: see the module.

    Returns:
        (B, num_heads, size * size, H, W).

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0]]]])
        >>> products(x, x, 1, 3)[0, 0, 3:6].squeeze(1).tolist()
        [[0.0, 2.0], [1.0, 4.0], [2.0, 0.0]]
    """
    shape = (num_heads, -1)
    if not unfold:
        q = unflatten(queries, 1, shape)
        return torch.stack([(q * unflatten(k, 1, shape)).sum(2) for k in views(keys, size)], 2)
    q = unflatten(queries, 1, shape).flatten(3).permute(0, 1, 3, 2).unsqueeze(3)  # (B, heads, N, 1, d)
    k = unflatten(gathered(keys, size), 1, shape).permute(0, 1, 4, 2, 3)  # (B, heads, N, d, size^2)
    return unflatten((q @ k).squeeze(3).mT, 3, queries.shape[2:])


def mixture(
    weights: Tensor,
    values: Tensor,
    size: int,
    stride: int = 1,
    *,
    padding: str = "constant",
    unfold: bool = False,
) -> Tensor:
    """Weighted sums over windows.

    Args:
        weights: (B, G, size * size, H / stride, W / stride); group g weighs channel block g.
        values: (B, C, H, W).
        size: of the window.
        stride: of the windows' centres.
        padding: of the values; see :func:`views`.
        unfold: see the module.

    Returns:
        (B, C, H / stride, W / stride).

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0]]]])
        >>> mixture(torch.full((1, 1, 9, 1, 2), 1 / 3), x, 3).flatten().tolist()
        [1.0, 1.0]
    """
    shape = (weights.shape[1], -1)
    if unfold:
        return combined(weights, gathered(values, size, stride, padding))
    total: Any = 0
    for weight, view in zip(weights.unbind(2), views(values, size, stride, padding), strict=True):
        total = total + weight.unsqueeze(2) * unflatten(view, 1, shape)
    found: Tensor = total.flatten(1, 2)
    return found


def gathered(x: Tensor, size: int, stride: int = 1, padding: str = "constant") -> Tensor:
    """Copies of all windows, (B, C, size * size, N); see :func:`views`."""
    before = (size - 1) // 2
    padded = F.pad(x, (before, size - 1 - before) * 2, mode=padding)
    return unflatten(F.unfold(padded, size, stride=stride), 1, (x.shape[1], size * size))


def combined(weights: Tensor, windows: Tensor) -> Tensor:
    """:func:`mixture` of gathered windows, by matrix products."""
    w = weights.flatten(3).mT.unsqueeze(4)  # (B, G, N, size^2, 1)
    v = unflatten(windows, 1, (weights.shape[1], -1)).permute(0, 1, 4, 2, 3)
    return unflatten((v @ w).squeeze(4).mT, 3, weights.shape[3:]).flatten(1, 2)

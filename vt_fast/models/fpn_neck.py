"""The feature pyramid that the paper replaces (Lin et al., arXiv 1612.03144), and parts of both necks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.models.contexts import on_device
from vt_fast.models.resnet import NormLayer, ResNet
from vt_fast.nn.options import Factory, check_keywords, spelled_out
from vt_fast.nn.traced import is_traced, leaf


class FPN(nn.Module):
    """Feature pyramid: 1x1 laterals, a sum from coarse to fine, 3x3 output convolutions.

    Parameters have the names of `torchvision.ops.FeaturePyramidNetwork`.

    Args:
        in_channels: of each incoming map, the finest first.
        channels: of every returned map.
        norm_layer: makes a norm for a number of channels. It follows each convolution, which then has no
            bias. None for biases and no norm.
        device, dtype: of the parameters.

    Attributes:
        out_channels: of every returned map.

    Raises:
        ValueError: no level, or channels below 1.

    Example:
        >>> maps = [torch.zeros(1, 64, 24, 20), torch.zeros(1, 128, 12, 10)]
        >>> [tuple(level.shape) for level in FPN((64, 128))(maps)]
        [(1, 256, 24, 20), (1, 256, 12, 10)]
    """

    @spelled_out(ResNet.__init__, Factory)
    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        norm_layer: NormLayer | None = None,
        **factory: Unpack[Factory],
    ) -> None:
        super().__init__()
        check_keywords(FPN, factory)
        check_levels(in_channels, channels)
        self.in_channels, self.out_channels = tuple(in_channels), channels
        with on_device(factory.get("device")):
            self.inner_blocks = nn.ModuleList(
                convolution(each, channels, 1, norm_layer) for each in in_channels
            )
            self.layer_blocks = nn.ModuleList(
                convolution(channels, channels, 3, norm_layer) for _ in in_channels
            )
        self.to(dtype=factory.get("dtype"))

    def forward(self, maps: Sequence[Tensor], mask: Tensor | None = None) -> list[Tensor]:
        """A map (B, channels, H, W) for each incoming one.

        Args:
            maps: (B, C, H, W) each, the finest first; a coarser map is resized to the size of the finer one.
            mask: not used; accepted so that both necks have the same signature.

        Raises:
            TypeError: not a list of floating-point tensors.
            ValueError: a wrong number of maps or channels.
        """
        if is_traced(maps):
            found = leaf(self, maps, mask)
            return [found[index] for index in range(len(self.in_channels))]
        check_maps(maps, self.in_channels)
        summed: list[Tensor] = []
        for block, x in zip(reversed(self.inner_blocks), reversed(maps), strict=True):
            lateral = block(x)
            if summed:
                lateral = lateral + F.interpolate(summed[-1], size=lateral.shape[-2:], mode="nearest")
            summed.append(lateral)
        return [block(x) for block, x in zip(self.layer_blocks, reversed(summed), strict=True)]


def convolution(channels: int, out_channels: int, kernel: int, norm_layer: NormLayer | None) -> nn.Sequential:
    """A convolution that keeps the size, initialised uniformly with unit gain, and the norm if any."""
    conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=norm_layer is None)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv) if norm_layer is None else nn.Sequential(conv, norm_layer(out_channels))


def check_levels(in_channels: Sequence[int], channels: int) -> None:
    """Raise ValueError unless there is a level and all channel counts are at least 1."""
    if not in_channels:
        raise ValueError("`in_channels` must have one number for each map, got none")
    checks.counts(channels=channels, **{f"in_channels[{i}]": each for i, each in enumerate(in_channels)})


def check_maps(maps: Any, channels: Sequence[int]) -> None:
    """Raise unless `maps` are feature maps with these channels and the same batch size.

    Raises:
        TypeError: not a list or tuple, or a member is not a dense floating-point tensor.
        ValueError: a wrong number of maps, or a member of a wrong shape.
    """
    if not isinstance(maps, list | tuple):
        raise TypeError(f"`maps` must be a list or tuple of tensors, got {type(maps).__name__}")
    if len(maps) != len(channels):
        raise ValueError(f"`maps` must be {len(channels)} feature maps, got {len(maps)}")
    for index, (x, width) in enumerate(zip(maps, channels, strict=True)):
        name = f"maps[{index}]"
        checks.feature_map(name, x)
        if x.dim() != 4 or x.shape[1] != width or not checks.holds(x.shape[0] == maps[0].shape[0]):
            raise ValueError(
                f"`{name}` must be (B, C, H, W) with B = {maps[0].shape[0]} and C = {width}, "
                f"got {checks.shape(x)}"
            )


def check_mask(mask: Any, batch: int) -> None:
    """Raise unless `mask` is (B, H, W) bool with B = `batch`.

    Raises:
        TypeError: not a tensor of bools.
        ValueError: a wrong shape.
    """
    checks.tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"`mask` must be a tensor of bools, got {mask.dtype}")
    if mask.dim() != 3 or not checks.holds(mask.shape[0] == batch):
        raise ValueError(f"`mask` must be (B, H, W) with B = {batch}, got {checks.shape(mask)}")

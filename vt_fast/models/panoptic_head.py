"""The semantic head of panoptic FPN (Kirillov et al., arXiv 1901.02446)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device

from vt_fast import checks
from vt_fast.models.contexts import on_device
from vt_fast.models.fpn_neck import check_maps
from vt_fast.models.resnet import NormLayer
from vt_fast.nn.traced import is_traced, leaf


def group_norm(channels: int) -> nn.Module:
    """GroupNorm with 32 groups, the original head's norm."""
    return nn.GroupNorm(32, channels)


class PanopticHead(nn.Module):
    """Resizes the levels of a pyramid to the finest one's size, adds them, and classifies each pixel.

    The finest level passes one 3x3 convolution, norm and ReLU. Level i, counted from there, passes i of them,
    each followed by a bilinear resize to the next finer level's size. The sum passes a 1x1 convolution to the
    classes and a bilinear resize to the image's size.

    Args:
        num_classes: K.
        in_channels: of every level.
        levels: number of levels.
        channels: of the 3x3 convolutions.
        norm_layer: makes a norm for a number of channels.
        device, dtype: of the parameters.

    Raises:
        ValueError: a number below 1, or channels that the norm does not accept.

    Example:
        >>> maps = [torch.zeros(1, 256, 8, 6), torch.zeros(1, 256, 4, 3)]
        >>> PanopticHead(21, levels=2)(maps, size=(32, 24)).shape
        torch.Size([1, 21, 32, 24])
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        *,
        levels: int = 4,
        channels: int = 128,
        norm_layer: NormLayer = group_norm,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.counts(num_classes=num_classes, in_channels=in_channels, levels=levels, channels=channels)
        self.num_classes, self.in_channels, self.levels = num_classes, in_channels, levels
        with on_device(device):
            self.branches = nn.ModuleList(
                nn.ModuleList(
                    nn.Sequential(
                        nn.Conv2d(
                            in_channels if stage == 0 else channels, channels, 3, padding=1, bias=False
                        ),
                        norm_layer(channels),
                        nn.ReLU(inplace=True),
                    )
                    for stage in range(max(level, 1))
                )
                for level in range(levels)
            )
            self.classifier = nn.Conv2d(channels, num_classes, 1)
            self.reset_parameters()
        self.to(dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialise the 3x3 convolutions as He et al. do, and the classifier with small weights."""
        for branch in self.branches:
            for module in branch.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        if self.classifier.bias is not None:
            nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Logits (B, K, H, W).

        Args:
            maps: (B, in_channels, H, W) each, the finest first.
            size: (H, W) of the logits; by default that of the finest level.

        Raises:
            TypeError: not a list of floating-point tensors.
            ValueError: a wrong number of maps or channels.
        """
        if is_traced(maps):
            return cast(Tensor, leaf(self, maps, size))
        check_maps(maps, (self.in_channels,) * self.levels)
        total: Tensor | None = None
        for level, (branch, x) in enumerate(zip(self.branches, maps, strict=True)):
            for stage in range(max(level, 1)):
                x = branch.get_submodule(str(stage))(x)
                if level > 0:
                    x = _resize(x, maps[level - stage - 1].shape[-2:])
            total = x if total is None else total + x
        logits: Tensor = self.classifier(total)
        return logits if size is None else _resize(logits, size)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)

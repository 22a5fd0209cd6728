"""Segmentation networks with either neck, small enough to train on one core in seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from vt_fast.models import SegmentationNet, fpn, vt_fpn

_CHANNELS = 64
_NETS: dict[str, Callable[..., SegmentationNet]] = {"fpn": fpn, "vt_fpn": partial(vt_fpn, token_channels=128)}


class SmallBackbone(nn.Module):
    """Three levels of plain 3x3 convolutions with BatchNorm, at strides 4, 8 and 16."""

    channels, strides = (48, 64, 96), (4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            (
                nn.Sequential(nn.BatchNorm2d(3), *_step(3, 24, 2), *_step(24, 48, 2), *_step(48, 48, 1)),
                nn.Sequential(*_step(48, 64, 2), *_step(64, 64, 1)),
                nn.Sequential(*_step(64, 96, 2), *_step(96, 96, 1)),
            )
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps of images (B, 3, H, W), the finest first."""
        return [x := level(x) for level in self.levels]


def scene_net(num_classes: int, neck: str = "vt_fpn") -> SegmentationNet:
    """A network for scenes.

    Args:
        num_classes: number of classes, background included.
        neck: "vt_fpn" or "fpn".

    Raises:
        ValueError: another neck.
    """
    if neck not in _NETS:
        raise ValueError(f'`neck` must be "vt_fpn" or "fpn", got {neck!r}')
    return _NETS[neck](
        num_classes=num_classes,
        backbone=SmallBackbone(),
        channels=_CHANNELS,
        head_channels=_CHANNELS,
        head_norm_layer=_norm,
    )


def _step(channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU()


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)

"""The trunk under a VT stage: one of our ResNets cut off, or any module that returns a map."""

from __future__ import annotations

from torch import Tensor, nn

from vt_fast.models.resnet import ResNet
from vt_fast.models.shapes import IMAGE, first_channels, map_shape

# Stage 5 of the paper's count, whose first is the stem, is what VT modules replace.
STAGES = 3
# VT modules in the paper's networks.
MODULES = {18: 2, 34: 3, 50: 3, 101: 3}


def make_trunk(
    depth: int | None, trunk: nn.Module | None, channels: int | None, drop_path: float
) -> tuple[nn.Module, int]:
    """The trunk and the channels of its map, from either a depth or a module; see :class:`VTResNet`."""
    if (depth is None) == (trunk is None):
        raise ValueError(f"either `depth` or `trunk` must be given, got depth = {depth!r} and {_kind(trunk)}")
    if trunk is None:
        if channels is not None:
            raise ValueError(f"`trunk_channels` must be None without `trunk`, got {channels}")
        made = ResNet(depth or 0, stages=STAGES, drop_path=drop_path)
        return made, made.channels[-1]
    if drop_path:
        raise ValueError(f"`drop_path` must be 0 with `trunk`, which has its own, got {drop_path}")
    return trunk, channels if channels is not None else _map_shape(trunk)[1]


def stage_shapes(trunk: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of the maps of `stage_maps`."""
    if isinstance(trunk, ResNet):
        return trunk.channels, trunk.strides
    _, channels, height, _ = _map_shape(trunk)
    return (channels,), (round(IMAGE / height),)


def stage_maps(trunk: nn.Module, images: Tensor) -> list[Tensor]:
    """Every stage's map where the trunk is one of our ResNets, else the one map that it returns."""
    return trunk.features(images) if isinstance(trunk, ResNet) else [trunk(images)]


def _map_shape(trunk: nn.Module) -> tuple[int, int, int, int]:
    return map_shape("trunk", trunk, first_channels(trunk) or 3, IMAGE)


def _kind(trunk: nn.Module | None) -> str:
    return "no trunk" if trunk is None else f"a trunk of type {type(trunk).__name__}"

"""The backbone under a VT stage: a ResNet cut off after its third stage, or any module that returns a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.types import Device
from torch.utils.checkpoint import checkpoint

from vt_fast.models.resnet import ResNet
from vt_fast.models.shapes import IMAGE, first_channels, map_shape
from vt_fast.nn.members import unwrapped

# The ResNet stages that stay: VT blocks replace the fourth.
STAGES = 3
# VT blocks in the paper's networks, by depth of the ResNet.
NUM_BLOCKS = {18: 2, 34: 3, 50: 3, 101: 3}


def make_backbone(
    depth: int | None,
    backbone: nn.Module | None,
    channels: int | None,
    in_channels: int,
    stages: int,
    drop_path_rate: float,
    device: Device,
    dtype: torch.dtype | None,
) -> tuple[nn.Module, int]:
    """The backbone, from either a depth or a module, and the channels of its map; see :class:`VTResNet`."""
    if (depth is None) == (backbone is None):
        kind = "no backbone" if backbone is None else f"a backbone of type {type(backbone).__name__}"
        raise ValueError(f"either `depth` or `backbone` must be given, got depth = {depth!r} and {kind}")
    if backbone is None:
        if channels is not None:
            raise ValueError(f"`backbone_channels` must be None without `backbone`, got {channels}")
        made = ResNet(
            depth or 0,
            in_channels=in_channels,
            stages=stages,
            drop_path_rate=drop_path_rate,
            device=device,
            dtype=dtype,
        )
        return made, made.channels[-1]
    if in_channels != 3:
        raise ValueError(f"`in_channels` must be 3 with `backbone`, which has its own, got {in_channels}")
    if drop_path_rate:
        raise ValueError(
            f"`drop_path_rate` must be 0 with `backbone`, whose blocks are already made, got {drop_path_rate}"
        )
    return backbone, channels if channels is not None else _map_shape(backbone)[1]


def default_num_blocks(backbone: nn.Module) -> int:
    """The paper's number of VT blocks: 2 on a ResNet-18, 3 on anything else."""
    return 2 if isinstance(backbone, ResNet) and backbone.depth == 18 else 3


def stage_shapes(backbone: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of the maps of `stage_maps`."""
    if isinstance(backbone, ResNet):
        return backbone.channels, backbone.strides
    _, channels, height, _ = _map_shape(backbone)
    return (channels,), (round(IMAGE / height),)


def map_count(backbone: nn.Module | None) -> int:
    """How many maps :func:`stage_maps` returns; None stands for the ResNet under a VT stage."""
    if backbone is None:
        return STAGES
    return len(backbone.channels) if isinstance(backbone, ResNet) else 1


def stage_maps(backbone: nn.Module, images: Tensor, *, checkpointed: bool = False) -> list[Tensor]:
    """The map of every stage of a :class:`ResNet`, or the one map that another backbone returns.

    ``checkpointed``: the backward pass computes each stage, or such a backbone, again.
    """
    if isinstance(unwrapped(backbone), ResNet):
        found: list[Tensor] = backbone(images, every_stage=True, checkpointed=checkpointed)
        return found
    return [checkpoint(backbone, images, use_reentrant=False) if checkpointed else backbone(images)]


def _map_shape(backbone: nn.Module) -> tuple[int, int, int, int]:
    return map_shape("backbone", backbone, first_channels(backbone) or 3, IMAGE)

"""The paper's counts of FPN and VT-FPN, and the nets that we take them to be of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vt_fast.models.fpn_neck import FPN
from vt_fast.models.segmentation import fpn, vt_fpn
from vt_fast.models.vt_fpn_neck import VTFPN

# Of COCO-stuff (with 54 classes, as the counts have it) and of LIP.
COCO, LIP = (800, 1216), (473, 473)
COCO_CLASSES, LIP_CLASSES = 54, 20
# Of the maps of ResNet-50 and 101.
CHANNELS, STRIDES = (256, 512, 1024, 2048), (4, 8, 16, 32)


class Row(NamedTuple):
    """One figure of the paper.

    `build` makes the net, with backend="reference" where it has one, so that what is counted is the paper as
    written; build it under ``torch.device("meta")``, and it takes no memory. It takes `inputs`, the shapes of
    the tensors in the one argument of its forward: an image, or for a neck a list of maps.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    fit: float  # GMACs: convolutions and matrix products, rounded to two digits after the point
    paper: str  # GMACs, as printed

    def argument(self, device: torch.device | str = "meta") -> Tensor | list[Tensor]:
        """What the net takes, without values."""
        tensors = [torch.empty(shape, device=device) for shape in self.inputs]
        return tensors[0] if tensors[0].shape[1] == 3 else tensors


def _levels(size: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the maps that a neck gets: sizes are rounded up."""
    height, width = size
    return tuple(
        (1, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    )


def _fpn_neck() -> nn.Module:
    return FPN(CHANNELS)


def _vt_fpn_neck() -> nn.Module:
    return VTFPN(CHANNELS, backend="reference")


def _fpn(depth: int, classes: int) -> Callable[[], nn.Module]:
    return lambda: fpn(depth, classes)


def _vt_fpn(depth: int, classes: int) -> Callable[[], nn.Module]:
    return lambda: vt_fpn(depth, classes, backend="reference")


def _image(size: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    return ((1, 3, *size),)


ROWS: tuple[Row, ...] = (
    Row("FPN neck, 800 x 1216", _fpn_neck, _levels(COCO), 55.10, "55.1"),
    Row("FPN neck, 473 x 473", _fpn_neck, _levels(LIP), 12.89, "12.8"),
    Row("VT-FPN neck, 800 x 1216", _vt_fpn_neck, _levels(COCO), 8.57, "8.5"),
    Row("VT-FPN neck, 473 x 473", _vt_fpn_neck, _levels(LIP), 2.10, "2.0"),
    Row("R50 FPN, 800 x 1216", _fpn(50, COCO_CLASSES), _image(COCO), 159.13, "159"),
    Row("R101 FPN, 800 x 1216", _fpn(101, COCO_CLASSES), _image(COCO), 231.11, "231"),
    Row("R50 FPN, 473 x 473", _fpn(50, LIP_CLASSES), _image(LIP), 37.33, "37.1"),
    Row("R101 FPN, 473 x 473", _fpn(101, LIP_CLASSES), _image(LIP), 54.38, "54.4"),
    Row("R50 VT-FPN, 800 x 1216", _vt_fpn(50, COCO_CLASSES), _image(COCO), 112.61, "113"),
    Row("R101 VT-FPN, 800 x 1216", _vt_fpn(101, COCO_CLASSES), _image(COCO), 184.58, "185"),
    Row("R50 VT-FPN, 473 x 473", _vt_fpn(50, LIP_CLASSES), _image(LIP), 26.54, "26.4"),
    Row("R101 VT-FPN, 473 x 473", _vt_fpn(101, LIP_CLASSES), _image(LIP), 43.58, "43.6"),
)

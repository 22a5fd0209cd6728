"""Which networks and parts of networks stand against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from vt_fast.models import FPN, VTFPN, ResNet, VTResNet, fpn, vt_fpn
from vt_fast.nn import VisualTransformerStack

STAGE, NECK, CLASSIFIER, SEGMENTATION = "stage", "neck", "classifier", "segmentation"
KINDS = (STAGE, NECK, CLASSIFIER, SEGMENTATION)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A network, or a part of one, and what the paper puts in its place.

    Args:
        kind: what it is of.
        name: of what is replaced, with its size.
        convolutional: makes what is replaced.
        visual: makes what replaces it.
        part: the attribute of `visual()` that is compiled where somebody compiles; "" for all of it.
        batch: images.
        inputs: shapes of the tensors in the one argument, without the batch: one, or a list of maps.
        small: the same, for comparing results with those in float64.
    """

    kind: str
    name: str
    convolutional: Callable[[], nn.Module]
    visual: Callable[[], nn.Module]
    part: str
    batch: int
    inputs: tuple[Shape, ...]
    small: tuple[Shape, ...]


class Tokens(nn.Module):
    """A stack whose result is its tokens, as a classifier takes them."""

    def __init__(self, stack: VisualTransformerStack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, CT)."""
        return cast(Tensor, self.stack(x)[1])


# Sizes of the paper's: COCO's and LIP's images.
_PYRAMIDS = ((800, 1216), (473, 473))
_CLASSES = {(800, 1216): 54, (473, 473): 20}


def cases(quick: bool = False) -> Iterator[Case]:
    """All cases; quick ones are small, and prove nothing but that they run."""
    depths, batch, side = ((18,), 1, 64) if quick else ((18, 34, 50, 101), 8, 224)
    for depth in depths:
        yield _stage(depth, batch, side)
    for size in ((64, 96),) if quick else _PYRAMIDS:
        yield _neck(size)
    for depth in depths:
        yield _classifier(depth, batch, side)
    for size in ((64, 96),) if quick else _PYRAMIDS:
        yield _segmentation(size)


def _stage(depth: int, batch: int, side: int) -> Case:
    channels = ResNet(depth, stages=3).channels[-1]
    return Case(
        STAGE,
        f"ResNet-{depth}'s last stage, {batch} x {side // 16}x{side // 16}",
        lambda: ResNet(depth).get_submodule("layer4"),
        lambda: Tokens(VTResNet(depth).stage),
        "",
        batch,
        ((channels, side // 16, side // 16),),
        ((channels, 7, 7),),
    )


def _classifier(depth: int, batch: int, side: int) -> Case:
    return Case(
        CLASSIFIER,
        f"ResNet-{depth}, {batch} x {side}x{side}",
        lambda: ResNet(depth, 1000),
        lambda: VTResNet(depth, 1000),
        "stage",
        batch,
        ((3, side, side),),
        ((3, 64, 64),),
    )


def _neck(size: tuple[int, int]) -> Case:
    channels = ResNet(50).channels
    return Case(
        NECK,
        f"FPN on ResNet-50, 1 x {size[0]}x{size[1]}",
        lambda: FPN(channels),
        lambda: VTFPN(channels),
        "",
        1,
        _levels(channels, size),
        _levels(channels, (96, 64)),
    )


def _segmentation(size: tuple[int, int]) -> Case:
    classes = _CLASSES.get(size, 20)
    return Case(
        SEGMENTATION,
        f"ResNet-50 FPN, 1 x {size[0]}x{size[1]}",
        lambda: fpn(50, classes),
        lambda: vt_fpn(50, classes),
        "neck",
        1,
        ((3, *size),),
        ((3, 64, 96),),
    )


def _levels(channels: tuple[int, ...], size: tuple[int, int]) -> tuple[Shape, ...]:
    """Maps of strides 4, 8, 16 and 32, sizes rounded up."""
    return tuple(
        (width, -(-size[0] // (4 << level)), -(-size[1] // (4 << level)))
        for level, width in enumerate(channels)
    )

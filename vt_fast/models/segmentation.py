"""Nets for semantic segmentation: trunk, neck and head, with FPN or VT-FPN for a neck."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vt_fast import checks
from vt_fast.models.fpn_neck import FPN
from vt_fast.models.panoptic_head import PanopticHead
from vt_fast.models.resnet import Norm, ResNet
from vt_fast.models.vt_fpn_neck import VTFPN


class _Pyramid(nn.Module):
    """A trunk, and a neck on its maps."""

    def __init__(self, trunk: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        made, taken = tuple(_of(trunk, "trunk", "channels")), tuple(_of(neck, "neck", "in_channels"))
        if made != taken:
            raise ValueError(f"`neck` must have in_channels = {made}, those of the trunk's maps, got {taken}")
        self.trunk, self.neck = trunk, neck
        self.strides: tuple[int, ...] = tuple(_of(trunk, "trunk", "strides"))
        self.out_channels: int = _of(neck, "neck", "out_channels")

    def features(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The neck's maps (B, out_channels, H / stride, W / stride), rounded up, the finest first.

        Args:
            images: (B, 3, H, W).
            mask: see :meth:`VTFPN.forward`.

        Raises:
            TypeError: `images` is no dense floating-point tensor.
            ValueError: it has another shape.
        """
        checks.feature_map("images", images)
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"`images` must be (B, 3, H, W), got {checks.shape(images)}")
        maps: list[Tensor] = self.neck(self.trunk.features(images), mask)  # type: ignore[operator]
        return maps


class FeaturePyramid(_Pyramid):
    """A trunk and a neck for detectors: images to named maps, as `torchvision.models.detection` takes them.

    Args:
        trunk: see :class:`SegmentationNet`, and so is `neck`.
        neck: see there.

    Attributes:
        out_channels: of every map.
        strides: of every map, in pixels of the image.

    Example:
        >>> trunk = ResNet(18)
        >>> maps = FeaturePyramid(trunk, VTFPN(trunk.channels))(torch.zeros(1, 3, 64, 96))
        >>> {name: tuple(level.shape[2:]) for name, level in maps.items()}
        {'0': (16, 24), '1': (8, 12), '2': (4, 6), '3': (2, 3)}
    """

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The maps of :meth:`features` under the names "0", "1" and so on, the finest first."""
        return {str(index): level for index, level in enumerate(self.features(images, mask))}


class SegmentationNet(_Pyramid):
    """A trunk, a neck and a head: a class for each pixel.

    Images may have any size. Nothing is padded: a trunk's stride rounds sizes up (or as it does), and what is
    brought from a coarser level to a finer one, and to the image, is resized to that one's size. So no token
    looks at pixels that are not there, and no work is done on them.

    Args:
        trunk: has `features(images)`, which returns a list of maps, the finest first, and their `channels`
            and `strides`, as :class:`ResNet` does.
        neck: has `in_channels`, the trunk's, and `out_channels`; takes the maps and a mask or None, and
            returns as many maps, as :class:`FPN` and :class:`VTFPN` do.
        head: takes the neck's maps and the image's size, and returns logits, as :class:`PanopticHead` does.

    Attributes:
        out_channels: of the neck's maps.
        strides: of the neck's maps, in pixels of the image.

    Raises:
        TypeError: the trunk or the neck lacks an attribute.
        ValueError: the neck's channels are not the trunk's.

    Example:
        >>> net = vt_fpn(18, num_classes=21)
        >>> net(torch.zeros(2, 3, 65, 49)).shape
        torch.Size([2, 21, 65, 49])
    """

    def __init__(self, trunk: nn.Module, neck: nn.Module, head: nn.Module) -> None:
        super().__init__(trunk, neck)
        self.head = head

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, K, H, W) of images (B, 3, H, W).

        Args:
            images: (B, 3, H, W).
            mask: (B, H, W) bool, False where images of several sizes were padded; see :meth:`VTFPN.forward`.

        Raises:
            TypeError: `images` is no dense floating-point tensor.
            ValueError: it has another shape.
        """
        logits: Tensor = self.head(self.features(images, mask), images.shape[-2:])
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """The likeliest class (B, H, W) of each pixel, int64, without gradient.

        Call `eval()` first, as for any net: this does not, and BatchNorm would learn from the images.
        """
        classes: Tensor = self(images, mask).argmax(1)
        return classes


def fpn(
    depth: int = 50,
    num_classes: int = 21,
    *,
    trunk: nn.Module | None = None,
    channels: int = 256,
    head_channels: int = 128,
    norm: Norm | None = None,
    head_norm: Norm | None = None,
) -> SegmentationNet:
    """The paper's baseline: ResNet, :class:`FPN` and :class:`PanopticHead`.

    Args:
        depth: of the :class:`ResNet`, whose bottlenecks have their stride in the first 1x1 convolution.
        num_classes: K.
        trunk: in place of the ResNet; see :class:`SegmentationNet`. `depth` is then not used.
        channels: of the neck.
        head_channels: of the head.
        norm: makes the norm behind the neck's convolutions; None for none.
        head_norm: makes the head's norm; by default GroupNorm in 32 groups.

    Example:
        >>> fpn(18, num_classes=20)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 20, 64, 64])
    """
    trunk = _trunk(depth) if trunk is None else trunk
    neck = FPN(_of(trunk, "trunk", "channels"), channels, norm=norm)
    return SegmentationNet(trunk, neck, _head(num_classes, neck, head_channels, head_norm))


def vt_fpn(
    depth: int = 50,
    num_classes: int = 21,
    *,
    trunk: nn.Module | None = None,
    channels: int = 256,
    head_channels: int = 128,
    norm: Norm | None = None,
    head_norm: Norm | None = None,
    backend: str | None = None,
    **neck_options: Any,
) -> SegmentationNet:
    """The paper's VT-FPN: ResNet, :class:`VTFPN` and :class:`PanopticHead`.

    Args:
        depth: see :func:`fpn`, and so are the others down to `head_norm`.
        num_classes: see there.
        trunk: see there.
        channels: see there.
        head_channels: see there.
        norm: see there.
        head_norm: see there.
        backend: of the neck; see :class:`vt_fast.nn.Module`.
        **neck_options: passed to :class:`VTFPN`.

    Example:
        >>> net = vt_fpn(18, num_classes=20, num_tokens=4, token_channels=64)
        >>> net.eval().predict(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 64, 64])
    """
    trunk = _trunk(depth) if trunk is None else trunk
    neck = VTFPN(_of(trunk, "trunk", "channels"), channels, norm=norm, backend=backend, **neck_options)
    return SegmentationNet(trunk, neck, _head(num_classes, neck, head_channels, head_norm))


def _trunk(depth: int) -> ResNet:
    return ResNet(depth, stride_in_1x1=True)


def _head(num_classes: int, neck: FPN | VTFPN, channels: int, norm: Norm | None) -> PanopticHead:
    options: dict[str, Any] = {} if norm is None else {"norm": norm}
    levels = len(neck.in_channels)
    return PanopticHead(num_classes, neck.out_channels, levels=levels, channels=channels, **options)


def _of(module: nn.Module, role: str, name: str) -> Any:
    if not hasattr(module, name):
        raise TypeError(f"`{role}` must have the attribute `{name}`, got {type(module).__name__} without it")
    return getattr(module, name)

"""Networks for semantic segmentation: backbone, neck and head, with FPN or VT-FPN as the neck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.types import Device

from vt_fast import checks
from vt_fast.models.fpn_neck import FPN
from vt_fast.models.panoptic_head import PanopticHead, group_norm
from vt_fast.models.resnet import NormLayer, ResNet
from vt_fast.models.shapes import first_channels
from vt_fast.models.vt_fpn_neck import VTFPN
from vt_fast.nn.members import unwrapped
from vt_fast.nn.traced import is_traced


class _Pyramid(nn.Module):
    """A backbone, and a neck on its maps."""

    def __init__(self, backbone: nn.Module, neck: nn.Module, out_indices: Sequence[int] | None) -> None:
        super().__init__()
        channels = _of(backbone, "backbone", "channels")
        for name in ("strides", "features"):  # which are read later
            _of(backbone, "backbone", name)
        indices = range(len(channels)) if out_indices is None else out_indices
        count = len(channels)
        if not indices or any(not -count <= index < count for index in indices):
            raise ValueError(f"`out_indices` must be one or more of 0 to {count - 1}, got {out_indices}")
        indices = [index % count for index in indices]
        made, taken = tuple(channels[index] for index in indices), tuple(_of(neck, "neck", "in_channels"))
        if made != taken:
            raise ValueError(
                f"`neck` must have in_channels = {made}, those of the backbone's maps, got {taken}"
            )
        self.backbone, self.neck, self.out_indices = backbone, neck, tuple(indices)
        self.out_channels: int = _of(neck, "neck", "out_channels")
        # Unknown for a backbone without a 2-D convolution.
        self.in_channels = first_channels(backbone)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the neck's maps, in pixels of the image."""
        strides = cast("tuple[int, ...]", self.backbone.strides)
        return tuple(strides[index] for index in self.out_indices)

    def features(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The neck's maps (B, out_channels, H / stride, W / stride), rounded up, the finest first.

        Args:
            images: (B, C, H, W) with the backbone's C, 3 in a :class:`ResNet` by default.
            mask: see :meth:`VTFPN.forward`.

        Raises:
            TypeError: `images` is not a dense floating-point tensor.
            ValueError: `images` has another shape.
        """
        return self._maps(images, mask)[0]

    def _maps(self, images: Tensor, mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """The neck's maps, and those that it takes."""
        if not is_traced(images):
            self._check(images)
        if getattr(type(unwrapped(self.backbone)), "features", None) is ResNet.features:
            stages = self.backbone(images, every_stage=True)  # called, so that its wrappers run
        else:
            stages = self.backbone.features(images)  # type: ignore[operator]
        taken = [stages[index] for index in self.out_indices]
        return self.neck(taken, mask), taken

    def _check(self, images: Tensor) -> None:
        checks.feature_map("images", images)
        channels = "C" if self.in_channels is None else self.in_channels
        if images.dim() != 4 or images.shape[1] != (self.in_channels or images.shape[1]):
            raise ValueError(f"`images` must be (B, {channels}, H, W), got {checks.shape(images)}")


class FeaturePyramid(_Pyramid):
    """A backbone and a neck that return named maps, as the detectors of torchvision take them.

    Those detectors pad the images of a batch to one size and pass no mask, so tokens attend to the padding.

    Args:
        backbone: see :class:`SegmentationNet`.
        neck: see :class:`SegmentationNet`.
        out_indices: see :class:`SegmentationNet`.
        extra_blocks: adds coarser maps, as a torchvision `ExtraFPNBlock` does: `LastLevelMaxPool()` gives
            Faster R-CNN the map "pool", `LastLevelP6P7(256, 256)` gives RetinaNet "p6" and "p7". It takes the
            neck's maps, the maps that the neck takes, and the names, and returns all maps and names.

    Attributes:
        out_channels: of every map.
        strides: of the neck's maps, in pixels of the image.

    Example:
        >>> backbone = ResNet(18)
        >>> maps = FeaturePyramid(backbone, VTFPN(backbone.channels))(torch.zeros(1, 3, 64, 96))
        >>> {name: tuple(level.shape[2:]) for name, level in maps.items()}
        {'0': (16, 24), '1': (8, 12), '2': (4, 6), '3': (2, 3)}
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        *,
        out_indices: Sequence[int] | None = None,
        extra_blocks: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, out_indices)
        self.extra_blocks = extra_blocks

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The maps of :meth:`features` as "0", "1", ..., the finest first, and then the extra ones."""
        maps, taken = self._maps(images, mask)
        names = [str(index) for index in range(len(self.out_indices))]
        if self.extra_blocks is not None:
            maps, names = self.extra_blocks(maps, taken, names)
        return dict(zip(names, maps, strict=True))


class SegmentationNet(_Pyramid):
    """A backbone, a neck and a head: a class for each pixel.

    Images may have any size and are not padded. A ResNet's strides round sizes up. A coarser level is resized
    to the size of the finer one, and the logits to that of the image. So no token attends to padding.

    Args:
        backbone: has `features(images)`, which returns a list of maps, the finest first, and their `channels`
            and `strides`, as :class:`ResNet` has.
        neck: has `in_channels`, the backbone's, and `out_channels`; takes the maps and a mask or None, and
            returns as many maps, as :class:`FPN` and :class:`VTFPN` do.
        head: takes the neck's maps and the image's size, and returns logits, as :class:`PanopticHead` does.
        out_indices: which of the backbone's maps the neck takes, the finest is 0, and negative indices count
            from the end; by default all.

    Attributes:
        out_channels: of the neck's maps.
        strides: of the neck's maps, in pixels of the image.

    Raises:
        TypeError: the backbone or the neck lacks an attribute.
        ValueError: the neck's channels are not the backbone's.

    Example:
        >>> net = vt_fpn(18, num_classes=21)
        >>> net(torch.zeros(2, 3, 65, 49)).shape
        torch.Size([2, 21, 65, 49])
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        *,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__(backbone, neck, out_indices)
        self.head = head

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W).

        Args:
            images: (B, C, H, W), C being the backbone's.
            mask: (B, H, W) bool, False where images of several sizes were padded; see :meth:`VTFPN.forward`.

        Raises:
            TypeError: `images` is not a dense floating-point tensor.
            ValueError: `images` has another shape.
        """
        logits: Tensor = self.head(self.features(images, mask), images.shape[-2:])
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """The most likely class (B, H, W) of each pixel, int64, without gradient.

        Call `eval()` first: in training mode BatchNorm would update its statistics.
        """
        classes: Tensor = self(images, mask).argmax(1)
        return classes


def fpn(
    depth: int = 50,
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    backbone: nn.Module | None = None,
    stride_in_1x1: bool = True,
    channels: int = 256,
    head_channels: int = 128,
    norm_layer: NormLayer | None = None,
    head_norm_layer: NormLayer = group_norm,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> SegmentationNet:
    """The paper's baseline: ResNet, :class:`FPN` and :class:`PanopticHead`.

    Args:
        depth: of the :class:`ResNet`.
        num_classes: K.
        in_channels: of the images; a `backbone` has its own.
        backbone: in place of the ResNet; see :class:`SegmentationNet`. `depth` is then not used.
        stride_in_1x1: see :class:`ResNet`: True as the paper counts; False for weights of torchvision and
            timm.
        channels: of the neck.
        head_channels: of the head.
        norm_layer: makes a norm for a number of channels, which follows the neck's convolutions; None for
            none.
        head_norm_layer: the same for the head.
        device, dtype: of the parameters. A `backbone` keeps its own.

    Example:
        >>> fpn(18, num_classes=20)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 20, 64, 64])
    """
    return _net(
        FPN,
        depth,
        num_classes,
        in_channels,
        backbone,
        stride_in_1x1,
        channels,
        head_channels,
        norm_layer,
        head_norm_layer,
        device,
        dtype,
    )


def vt_fpn(
    depth: int = 50,
    num_classes: int = 21,
    *,
    in_channels: int = 3,
    backbone: nn.Module | None = None,
    stride_in_1x1: bool = True,
    channels: int = 256,
    head_channels: int = 128,
    norm_layer: NormLayer | None = None,
    head_norm_layer: NormLayer = group_norm,
    device: Device = None,
    dtype: torch.dtype | None = None,
    **neck_options: Any,
) -> SegmentationNet:
    """The paper's VT-FPN: ResNet, :class:`VTFPN` and :class:`PanopticHead`.

    Args:
        depth: see :func:`fpn` for the arguments that are not listed here.
        **neck_options: other arguments of :class:`VTFPN`, such as `num_tokens` or `backend`.

    Example:
        >>> net = vt_fpn(18, num_classes=20, num_tokens=4, token_channels=64)
        >>> net.eval().predict(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 64, 64])
    """
    neck = partial(VTFPN, **neck_options)
    return _net(
        neck,
        depth,
        num_classes,
        in_channels,
        backbone,
        stride_in_1x1,
        channels,
        head_channels,
        norm_layer,
        head_norm_layer,
        device,
        dtype,
    )


def _net(
    neck: Callable[..., nn.Module],
    depth: int,
    num_classes: int,
    in_channels: int,
    backbone: nn.Module | None,
    stride_in_1x1: bool,
    channels: int,
    head_channels: int,
    norm_layer: NormLayer | None,
    head_norm_layer: NormLayer,
    device: Device,
    dtype: torch.dtype | None,
) -> SegmentationNet:
    if backbone is None:
        backbone = ResNet(
            depth, in_channels=in_channels, stride_in_1x1=stride_in_1x1, device=device, dtype=dtype
        )
    elif in_channels != 3:
        raise ValueError(f"`in_channels` must be 3 with `backbone`, which has its own, got {in_channels}")
    levels = _of(backbone, "backbone", "channels")
    head = PanopticHead(
        num_classes,
        channels,
        levels=len(levels),
        channels=head_channels,
        norm_layer=head_norm_layer,
        device=device,
        dtype=dtype,
    )
    made = neck(levels, channels, norm_layer=norm_layer, device=device, dtype=dtype)
    return SegmentationNet(backbone, made, head)


def _of(module: nn.Module, role: str, name: str) -> Any:
    if not hasattr(module, name):
        raise TypeError(f"`{role}` must have the attribute `{name}`, got {type(module).__name__} without it")
    return getattr(module, name)

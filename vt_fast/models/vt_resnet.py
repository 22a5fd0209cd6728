"""The paper's classifiers: a ResNet whose last stage is made of VT modules, and the same as a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from vt_fast.models.resnet import ResNet
from vt_fast.models.stage import vt_stack
from vt_fast.models.trunk import MODULES, make_trunk, stage_maps, stage_shapes
from vt_fast.nn import Projector, TokenRelation
from vt_fast.nn.base import Container


class VTResNet(Container):
    """VT-ResNet-18, 34, 50 or 101, or VT modules on a trunk of your own.

    The trunk's map, 14 x 14 for images of 224 x 224, goes through 2 (depth 18) or 3 VT modules without a
    stride in between; the classifier takes the mean of their tokens. The last module has no projector.

    Defaults are what we would train: the paper's sizes, with BatchNorm on the tokens and with biases. What
    the paper counts is `VTResNet(depth, norm=False, bias=False, backend="reference")`, and for its ablations
    `vt_fast.models.paper_rows.ROWS[name].build()`. The backend changes how much work there is, not what
    comes out.

    Args:
        depth: 18, 34, 50 or 101; None with `trunk`.
        num_classes: of the classifier; 0 for none: the mean of the tokens (B, CT) is returned.
        trunk: a module that returns a map (B, C, H, W), instead of the ResNet cut off after its third stage.
        trunk_channels: C of its map; by default found by running it on an image without data.
        num_modules: VT modules; by default the paper's 2 on a ResNet-18, and 3 on all else.
        drop_path: chance that a residual branch of the ResNet trunk is left out of a sample in training,
            rising linearly to this at its last block. VT modules are never left out.
        dropout: before the classifier.
        **options: `num_tokens`, `token_channels`, `tokenizer`, `relation`, `projector`, `position`, `width`,
            `norm`, `bias`, `backend` and what else :func:`vt_fast.models.vt_stack` takes.

    Attributes:
        trunk: images to a map.
        stage: the VT modules.
        fc: the classifier.

    Raises:
        TypeError: an option that there is not.
        ValueError: an unknown depth or name, numbers that do not divide as they must, both or neither of
            `depth` and `trunk`, or a trunk that does not return a map.

    Example:
        >>> import torch
        >>> model = VTResNet(18, num_classes=10)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
        >>> trunk = nn.Conv2d(3, 64, 16, stride=16)
        >>> VTResNet(trunk=trunk, num_classes=10, tokenizer="pooling")(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        depth: int | None = None,
        num_classes: int = 1000,
        *,
        trunk: nn.Module | None = None,
        trunk_channels: int | None = None,
        num_modules: int | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.trunk, channels = make_trunk(depth, trunk, trunk_channels, drop_path)
        self.stage = vt_stack(channels, _count(num_modules, self.trunk), **options)
        self.num_features = cast(TokenRelation, self.stage[0].transformer).token_channels
        self.dropout = nn.Dropout(dropout)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier of so many classes in the place of the old one; 0 for none."""
        if num_classes < 0:
            raise ValueError(f"`num_classes` must be at least 0, got {num_classes}")
        like = next(self.stage.parameters())
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def forward_features(self, images: Tensor) -> Tensor:
        """The tokens (B, L, CT) of images (B, 3, H, W)."""
        tokens: Tensor = self.stage(self.trunk(images))[1]
        return tokens

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of tokens (B, L, CT), or what the classifier would get, (B, CT)."""
        mean = self.dropout(tokens.mean(1))
        found: Tensor = mean if pre_logits else self.fc(mean)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(images))


class VTResNetFeatures(Container):
    """The trunk and VT stage of a :class:`VTResNet` as a backbone: images to a list of maps.

    The last module has its projector here, whose map has `width` channels, or `out_channels`. Names of
    parameters are those of :class:`VTResNet`, but for that projector and the classifier.

    Args:
        depth: see :class:`VTResNet`, as for all that is not listed here.
        out_indices: which maps to return, in this order; negative ones count from the end. By default all:
            those of the ResNet's three stages and the VT stage's. A trunk of your own counts as one.

    Attributes:
        channels: of each map returned.
        strides: of each map returned, in pixels of the image. The VT stage's is that of the trunk.

    Raises:
        ValueError: as :class:`VTResNet`, or an index that there is not.

    Example:
        >>> import torch
        >>> backbone = VTResNetFeatures(18)
        >>> [tuple(stage.shape) for stage in backbone(torch.zeros(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 4, 4)]
        >>> backbone.channels, backbone.strides
        ((64, 128, 256, 512), (4, 8, 16, 16))
    """

    def __init__(
        self,
        depth: int | None = None,
        *,
        trunk: nn.Module | None = None,
        trunk_channels: int | None = None,
        num_modules: int | None = None,
        out_indices: Sequence[int] | None = None,
        drop_path: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.trunk, channels = make_trunk(depth, trunk, trunk_channels, drop_path)
        self.stage = vt_stack(channels, _count(num_modules, self.trunk), last_projector=True, **options)
        all_channels, all_strides = stage_shapes(self.trunk)
        all_channels += (cast(Projector, self.stage[-1].projector).out_channels,)
        all_strides += (all_strides[-1],)
        count = len(all_channels)
        wanted = range(count) if out_indices is None else out_indices
        if not wanted or any(not -count <= index < count for index in wanted):
            raise ValueError(f"`out_indices` must be one or more of 0 to {count - 1}, got {out_indices}")
        self.out_indices = tuple(index % count for index in wanted)
        self.channels = tuple(all_channels[index] for index in self.out_indices)
        self.strides = tuple(all_strides[index] for index in self.out_indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps (B, channels[i], H / strides[i], W / strides[i]) of images (B, 3, H, W)."""
        maps = stage_maps(self.trunk, images)
        if len(maps) in self.out_indices:
            maps.append(self.stage(maps[-1])[0])
        return [maps[index] for index in self.out_indices]


def vt_resnet18(num_classes: int = 1000, **options: Any) -> VTResNet:
    """VT-ResNet-18: two VT modules; see :class:`VTResNet` for the options."""
    return VTResNet(18, num_classes, **options)


def vt_resnet34(num_classes: int = 1000, **options: Any) -> VTResNet:
    """VT-ResNet-34: three VT modules; see :class:`VTResNet` for the options."""
    return VTResNet(34, num_classes, **options)


def vt_resnet50(num_classes: int = 1000, **options: Any) -> VTResNet:
    """VT-ResNet-50: three VT modules, maps as wide as tokens; see :class:`VTResNet` for the options."""
    return VTResNet(50, num_classes, **options)


def vt_resnet101(num_classes: int = 1000, **options: Any) -> VTResNet:
    """VT-ResNet-101: three VT modules, maps as wide as tokens; see :class:`VTResNet` for the options."""
    return VTResNet(101, num_classes, **options)


def _count(num_modules: int | None, trunk: nn.Module) -> int:
    if num_modules is not None:
        return num_modules
    return MODULES[trunk.depth] if isinstance(trunk, ResNet) else max(MODULES.values())

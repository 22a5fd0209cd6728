"""The paper's classifiers, ResNets whose last stage consists of VT blocks, and the same as a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.types import Device
from typing_extensions import Unpack

from vt_fast.models.backbone import default_num_blocks, make_backbone, stage_maps, stage_shapes
from vt_fast.models.stage import StageOptions, make_stack
from vt_fast.nn import Projector, TokenRelation
from vt_fast.nn.base import CompositeModule
from vt_fast.nn.options import Factory, check_keywords, spelled_out


class VTResNet(CompositeModule):
    """VT-ResNet-18, 34, 50 or 101, or VT blocks on a backbone of your own.

    The backbone's map, 14 x 14 for images of 224 x 224, passes 2 (depth 18) or 3 VT blocks without a stride.
    The classifier takes the mean of their tokens. The last block has no projector.

    The defaults are the paper's sizes, with BatchNorm on the tokens and with biases. The network that the
    paper counts is `VTResNet(depth, token_norm=None, bias=False, backend="reference")`. The backend changes
    the amount of work, not the result.

    Args:
        depth: 18, 34, 50 or 101; None with `backbone`.
        num_classes: of the classifier; 0 for none, which returns the mean of the tokens (B, CT).
        backbone: a module that returns a map (B, C, H, W), in place of the ResNet without its last stage.
        backbone_channels: C of its map; by default found by running it on an image without data.
        num_blocks: VT blocks; by default 2 on a ResNet-18 and 3 on anything else, as in the paper.
        drop_path_rate: probability that training skips a residual branch of the ResNet for a sample; rises
            linearly to this value at the last block. VT blocks are never skipped.
        drop_rate: of the dropout before the classifier.
        width: channels of the map between the VT blocks; by default 2 C, but at most `token_channels` and at
            least C.
        device, dtype: of the parameters. A `backbone` keeps its own.
        **options: `num_tokens`, `token_channels`, `tokenizer`, `relation`, `token_norm`, `backend` and the
            other options of :class:`VTStage`.

    Attributes:
        backbone: images to a map.
        stage: the VT blocks, a :class:`vt_fast.nn.VisualTransformerStack`.
        fc: the classifier.

    Raises:
        TypeError: an unknown option.
        ValueError: an unknown depth or name, sizes that do not divide as they must, both or neither of
            `depth` and `backbone`, or a backbone that does not return a map.

    Example:
        >>> model = VTResNet(18, num_classes=10)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
        >>> patches = nn.Conv2d(3, 64, 16, stride=16)
        >>> VTResNet(backbone=patches, num_classes=10, tokenizer="pooling")(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """

    @spelled_out(make_stack, StageOptions)
    def __init__(
        self,
        depth: int | None = None,
        num_classes: int = 1000,
        *,
        backbone: nn.Module | None = None,
        backbone_channels: int | None = None,
        num_blocks: int | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        width: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[StageOptions],
    ) -> None:
        super().__init__()
        check_keywords(VTResNet, options)
        self.backbone, channels = make_backbone(
            depth, backbone, backbone_channels, drop_path_rate, device, dtype
        )
        if num_blocks is None:
            num_blocks = default_num_blocks(self.backbone)
        self.stage = make_stack(
            channels, num_blocks, width, last_projector=False, device=device, dtype=dtype, **options
        )
        self.num_features = cast(TokenRelation, self.stage[0].transformer).token_channels
        self.dropout = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one with `num_classes` classes; 0 for none."""
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
        tokens: Tensor = self.stage(self.backbone(images))[1]
        return tokens

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) from tokens (B, L, CT), or the classifier's input (B, CT)."""
        mean = self.dropout(tokens.mean(1))
        found: Tensor = mean if pre_logits else self.fc(mean)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(images))


class VTResNetFeatures(CompositeModule):
    """The backbone and the VT stage of a :class:`VTResNet`, returning a list of maps.

    Here the last block has a projector. Parameters have the names that they have in :class:`VTResNet`.

    Args:
        depth: see :class:`VTResNet` for the arguments that are not listed here.
        out_indices: which maps to return, in this order; negative indices count from the end. By default all:
            those of the ResNet's three stages and that of the VT stage. Another backbone has one map.
        out_channels: of the VT stage's map; by default `width`.

    Attributes:
        channels: of each returned map.
        strides: of each returned map, in pixels of the image. The VT stage has the backbone's stride.

    Raises:
        ValueError: as :class:`VTResNet`, or an index out of range.

    Example:
        >>> net = VTResNetFeatures(18)
        >>> [tuple(stage.shape) for stage in net(torch.zeros(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 4, 4)]
        >>> net.channels, net.strides
        ((64, 128, 256, 512), (4, 8, 16, 16))
    """

    @spelled_out(make_stack, StageOptions)
    def __init__(
        self,
        depth: int | None = None,
        *,
        backbone: nn.Module | None = None,
        backbone_channels: int | None = None,
        num_blocks: int | None = None,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        out_channels: int | None = None,
        width: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[StageOptions],
    ) -> None:
        super().__init__()
        check_keywords(VTResNetFeatures, options)
        self.backbone, channels = make_backbone(
            depth, backbone, backbone_channels, drop_path_rate, device, dtype
        )
        if num_blocks is None:
            num_blocks = default_num_blocks(self.backbone)
        self.stage = make_stack(
            channels, num_blocks, width, out_channels=out_channels, device=device, dtype=dtype, **options
        )
        all_channels, all_strides = stage_shapes(self.backbone)
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
        maps = stage_maps(self.backbone, images)
        if len(maps) in self.out_indices:
            maps.append(self.stage(maps[-1])[0])
        return [maps[index] for index in self.out_indices]


class NetOptions(StageOptions, Factory, total=False):
    """The options of :class:`VTResNet` for a known depth."""

    num_blocks: int | None
    drop_path_rate: float
    drop_rate: float
    width: int | None


@spelled_out(VTResNet.__init__, NetOptions)
def vt_resnet18(num_classes: int = 1000, **options: Unpack[NetOptions]) -> VTResNet:
    """VT-ResNet-18, with two VT blocks; see :class:`VTResNet` for the options."""
    check_keywords(vt_resnet18, options)
    return VTResNet(18, num_classes, **options)


@spelled_out(VTResNet.__init__, NetOptions)
def vt_resnet34(num_classes: int = 1000, **options: Unpack[NetOptions]) -> VTResNet:
    """VT-ResNet-34, with three VT blocks; see :class:`VTResNet` for the options."""
    check_keywords(vt_resnet34, options)
    return VTResNet(34, num_classes, **options)


@spelled_out(VTResNet.__init__, NetOptions)
def vt_resnet50(num_classes: int = 1000, **options: Unpack[NetOptions]) -> VTResNet:
    """VT-ResNet-50, with three VT blocks; see :class:`VTResNet` for the options."""
    check_keywords(vt_resnet50, options)
    return VTResNet(50, num_classes, **options)


@spelled_out(VTResNet.__init__, NetOptions)
def vt_resnet101(num_classes: int = 1000, **options: Unpack[NetOptions]) -> VTResNet:
    """VT-ResNet-101, with three VT blocks; see :class:`VTResNet` for the options."""
    check_keywords(vt_resnet101, options)
    return VTResNet(101, num_classes, **options)

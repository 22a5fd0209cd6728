"""The paper's classifiers, ResNets whose last stage consists of VT blocks, and the same as a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.types import Device
from torch.utils.checkpoint import checkpoint
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.models.backbone import (
    STAGES,
    default_num_blocks,
    make_backbone,
    map_count,
    stage_maps,
    stage_shapes,
)
from vt_fast.models.stage import StageOptions, make_stack
from vt_fast.nn import Projector, TokenRelation, VisualTransformerStack
from vt_fast.nn.base import CompositeModule
from vt_fast.nn.options import Factory, check_keywords, spelled_out


class _Checkpointed(CompositeModule):
    """A backbone and a VT stage that training may compute again in the backward pass."""

    backbone: nn.Module
    grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes the ResNet's stages and the VT stage again in the backward pass."""
        checks.flag("enable", enable)
        self.grad_checkpointing = enable

    def _checkpoints(self) -> bool:
        return self.grad_checkpointing and self.training and torch.is_grad_enabled()

    def _maps(self, images: Tensor) -> list[Tensor]:
        return stage_maps(self.backbone, images, checkpointed=self._checkpoints())

    def _run(self, module: nn.Module, x: Tensor) -> Any:
        return checkpoint(module, x, use_reentrant=False) if self._checkpoints() else module(x)


class VTResNet(_Checkpointed):
    """VT-ResNet-18, 34, 50 or 101, or VT blocks on a backbone of your own.

    The backbone's map, 14 x 14 for images of 224 x 224, passes 2 (depth 18) or 3 VT blocks without a stride.
    The classifier takes the mean of their tokens. The last block has no projector.

    The defaults are the paper's sizes, with BatchNorm on the tokens and with biases. The network that the
    paper counts is `VTResNet(depth, token_norm=None, bias=False, backend="reference")`. The backend changes
    the amount of work, not the result.

    The counts printed for depth 50 fit the first version's module with 4 tokens. So `variant` is "v1" and
    `num_tokens` 4 by default for depth 50 and 101, whose own count is met to 0.1 % in MACs but not in
    parameters. With variant="v2" they have the module of depth 18 and 34, with 16 tokens.

    Args:
        depth: 18, 34, 50 or 101; None with `backbone`.
        num_classes: of the classifier; 0 for none, which returns the mean of the tokens (B, CT).
        in_channels: of the images; a `backbone` has its own.
        backbone: a module that returns a map (B, C, H, W), in place of the ResNet without its last stage.
        backbone_channels: C of its map; by default found by running it on an image without data.
        num_blocks: VT blocks; by default 2 on a ResNet-18 and 3 on anything else, as in the paper.
        drop_path_rate: probability that training skips a residual branch of the ResNet for a sample; rises
            linearly to this value at the last block. VT blocks are never skipped.
        drop_rate: of the dropout before the classifier.
        global_pool: "avg" for the mean of the tokens; "" for the tokens (B, L, CT) themselves, without a
            classifier.
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
        in_channels: int = 3,
        backbone: nn.Module | None = None,
        backbone_channels: int | None = None,
        num_blocks: int | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        width: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[StageOptions],
    ) -> None:
        super().__init__()
        check_keywords(VTResNet, options)
        _choose_by_depth(depth, options)
        self.backbone, channels = make_backbone(
            depth, backbone, backbone_channels, in_channels, STAGES, drop_path_rate, device, dtype
        )
        if num_blocks is None:
            num_blocks = default_num_blocks(self.backbone)
        self.stage = make_stack(
            channels, num_blocks, width, last_projector=False, device=device, dtype=dtype, **options
        )
        self.num_features = cast(TokenRelation, self.stage[0].transformer).token_channels
        self.head_hidden_size = self.num_features
        self.dropout = nn.Dropout(drop_rate)
        self.global_pool = global_pool
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one with `num_classes` classes; 0 for none.

        Args:
            num_classes: of the new classifier.
            global_pool: None to leave it as it is; see :class:`VTResNet`.

        Raises:
            ValueError: another pooling, or classes without pooling.
        """
        if num_classes < 0:
            raise ValueError(f"`num_classes` must be at least 0, got {num_classes}")
        pool = self.global_pool if global_pool is None else global_pool
        checks.choice("global_pool", pool, ("avg", ""))
        if num_classes and not pool:
            raise ValueError(f'`num_classes` must be 0 with global_pool = "", got {num_classes}')
        like = next(self.stage.parameters())
        self.num_classes, self.global_pool = num_classes, pool
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameter names from the first layers to the last, as timm's layer decay takes them."""
        return {
            "stem": r"^backbone\.(?:conv1|bn1)\.",
            "stages": r"^backbone\.layer(\d+)" if coarse else r"^backbone\.layer(\d+)\.(\d+)",
            "vt_blocks": r"^stage\.blocks" if coarse else r"^stage\.blocks\.(\d+)",
        }

    def forward_features(self, images: Tensor) -> Tensor:
        """The tokens (B, L, CT) of images (B, C, H, W)."""
        # Hooks on the backbone see the one map that is used.
        x = self._maps(images)[-1] if self._checkpoints() else self.backbone(images)
        found: Tensor = self._run(self.stage, x)[1]
        return found

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the backbone, as timm's models return them; for the VT stage's map see
        :class:`VTResNetFeatures`.

        Args:
            images: (B, C, H, W).
            indices: of the maps, the finest is 0; a number for the last ones; None for all.
            norm: must be False: there is no last norm.
            stop_early: without the VT stage.
            output_fmt: "NCHW".
            intermediates_only: return the maps alone.

        Returns:
            The tokens of :meth:`forward_features` and the maps, or the maps.

        Raises:
            ValueError: another format, an index out of range, or `stop_early` where tokens are wanted.
        """
        checks.choice("output_fmt", output_fmt, ("NCHW",))
        if norm:
            raise ValueError("`norm` must be False: there is no norm after the last stage, got True")
        if stop_early and not intermediates_only:
            raise ValueError("`stop_early` must be False where the tokens are returned, got True")
        maps = self._maps(images)
        if isinstance(indices, int):
            if not 1 <= indices <= len(maps):
                raise ValueError(f"`indices` must be 1 to {len(maps)} for the last maps, got {indices}")
            indices = range(len(maps) - indices, len(maps))
        wanted = range(len(maps)) if indices is None else indices
        if any(not -len(maps) <= index < len(maps) for index in wanted):
            raise ValueError(f"`indices` must be of 0 to {len(maps) - 1}, got {indices}")
        found = [maps[index] for index in wanted]
        return found if intermediates_only else (self._run(self.stage, maps[-1])[1], found)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) from tokens (B, L, CT), or the classifier's input."""
        pooled = self.dropout(tokens.mean(1) if self.global_pool else tokens)
        found: Tensor = pooled if pre_logits else self.fc(pooled)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(images))


class VTResNetFeatures(_Checkpointed):
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
        in_channels: int = 3,
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
        _choose_by_depth(depth, options)
        count = map_count(backbone) + 1
        wanted = range(count) if out_indices is None else out_indices
        if not wanted or any(not -count <= index < count for index in wanted):
            raise ValueError(f"`out_indices` must be one or more of 0 to {count - 1}, got {out_indices}")
        self.out_indices = tuple(index % count for index in wanted)
        # What no returned map depends on is not made.
        stages = min(STAGES, max(self.out_indices) + 1)
        self.backbone, channels = make_backbone(
            depth, backbone, backbone_channels, in_channels, stages, drop_path_rate, device, dtype
        )
        all_channels, all_strides = stage_shapes(self.backbone)
        self.stage: VisualTransformerStack | None = None
        if count - 1 in self.out_indices:
            if num_blocks is None:
                num_blocks = default_num_blocks(self.backbone)
            self.stage = make_stack(
                channels, num_blocks, width, out_channels=out_channels, device=device, dtype=dtype, **options
            )
            all_channels += (cast(Projector, self.stage[-1].projector).out_channels,)
            all_strides += (all_strides[-1],)
        self.channels = tuple(all_channels[index] for index in self.out_indices)
        self.strides = tuple(all_strides[index] for index in self.out_indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps (B, channels[i], H / strides[i], W / strides[i]) of images (B, C, H, W)."""
        maps = self._maps(images)
        if self.stage is not None:
            maps.append(self._run(self.stage, maps[-1])[0])
        return [maps[index] for index in self.out_indices]


def _choose_by_depth(depth: int | None, options: StageOptions) -> None:
    """Set the variant and the number of tokens that the paper's counts fit, where they are not given."""
    deep = depth in (50, 101)
    if options.get("variant") is None:
        options["variant"] = "v1" if deep else "v2"
    if options.get("num_tokens") is None:
        options["num_tokens"] = 4 if deep and options["variant"] == "v1" else 16


class NetOptions(StageOptions, Factory, total=False):
    """The options of :class:`VTResNet` for a known depth."""

    in_channels: int
    num_blocks: int | None
    drop_path_rate: float
    drop_rate: float
    global_pool: str
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
    """VT-ResNet-50, with three VT blocks of the first version and 4 tokens; see :class:`VTResNet`."""
    check_keywords(vt_resnet50, options)
    return VTResNet(50, num_classes, **options)


@spelled_out(VTResNet.__init__, NetOptions)
def vt_resnet101(num_classes: int = 1000, **options: Unpack[NetOptions]) -> VTResNet:
    """VT-ResNet-101, with three VT blocks of the first version and 4 tokens; see :class:`VTResNet`."""
    check_keywords(vt_resnet101, options)
    return VTResNet(101, num_classes, **options)

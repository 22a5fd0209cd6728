"""The ResNets that the paper builds on and compares with (He et al., arXiv 1512.03385).

Parameters have torchvision's names, so that checkpoints of torchvision and timm can be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.types import Device
from torch.utils.checkpoint import checkpoint

from vt_fast import checks
from vt_fast.models.contexts import on_device
from vt_fast.nn.traced import is_traced, leaf

# Blocks in each stage, and whether they are bottlenecks.
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    26: ((2, 2, 2, 2), True),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    200: ((3, 24, 36, 3), True),
}
# Makes a norm for a number of channels.
NormLayer = Callable[[int], nn.Module]


class ResNet(nn.Module):
    """ResNet-18, 26, 34, 50, 101 or 200, whole or cut off after a stage.

    Args:
        depth: 18, 26, 34, 50, 101 or 200; 26 has the bottlenecks of 50, and as many as 18 has blocks.
        num_classes: of the classifier; None for none, which returns the last stage's map.
        in_channels: of the images.
        stages: number of stages, 1 to 4.
        stride_in_1x1: True puts a bottleneck's stride in its first 1x1 convolution, as in the original and in
            detection code; False in the 3x3 convolution, as in torchvision.
        width_per_group: width of the first stage's bottlenecks, which doubles with each stage.
        drop_path_rate: probability that training skips a block's residual branch for a sample; rises linearly
            from 0 at the first block to this value at the last, as in timm. The paper does not state the
            first value; that of the original stochastic depth is this value over the number of blocks.
        drop_rate: of the dropout before the classifier.
        norm_layer: makes a norm for a number of channels.
        device, dtype: of the parameters.

    Attributes:
        channels: of each stage's map.
        strides: of each stage's map, in pixels of the image.

    Raises:
        ValueError: an unknown depth, a number of stages other than 1 to 4, or another `width_per_group`
            without bottlenecks.

    Example:
        >>> ResNet(18, num_classes=10)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
        >>> [tuple(stage.shape) for stage in ResNet(50, stages=2).features(torch.zeros(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8)]
    """

    def __init__(
        self,
        depth: int,
        num_classes: int | None = None,
        *,
        in_channels: int = 3,
        stages: int = 4,
        stride_in_1x1: bool = False,
        width_per_group: int = 64,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        norm_layer: NormLayer = nn.BatchNorm2d,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"`depth` must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        if not 1 <= stages <= 4:
            raise ValueError(f"`stages` must be 1 to 4, got {stages}")
        checks.counts(in_channels=in_channels, width_per_group=width_per_group)
        checks.flag("stride_in_1x1", stride_in_1x1)
        _check_rate("drop_path_rate", drop_path_rate)
        counts, deep = DEPTHS[depth]
        if not deep and width_per_group != 64:
            raise ValueError(f"`width_per_group` must be 64 for depth {depth}, got {width_per_group}")
        expansion = Bottleneck.expansion if deep else 1
        self.depth, self.bottlenecks, self.stride_in_1x1 = depth, deep, stride_in_1x1
        self.channels = tuple((64 << index) * expansion for index in range(stages))
        self.strides = tuple(4 << index for index in range(stages))
        num_blocks = sum(counts[:stages])
        rates = iter([drop_path_rate * index / max(num_blocks - 1, 1) for index in range(num_blocks)])
        with on_device(device):
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            self.bn1 = norm_layer(64)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
            channels = 64
            for index, out_channels in enumerate(self.channels):
                layer = nn.Sequential()
                for block in range(counts[index]):
                    stride = 2 if block == 0 and index > 0 else 1
                    rate, width = next(rates), width_per_group << index
                    layer.append(
                        Bottleneck(channels, width, out_channels, stride, stride_in_1x1, rate, norm_layer)
                        if deep
                        else BasicBlock(channels, width, stride, rate, norm_layer)
                    )
                    channels = out_channels
                self.add_module(f"layer{index + 1}", layer)
            self.avgpool = nn.AdaptiveAvgPool2d(1) if num_classes else None
            self.dropout = nn.Dropout(drop_rate) if num_classes else None
            self.fc = nn.Linear(channels, num_classes) if num_classes else None
            self.reset_parameters()
        self.to(dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialise convolutions as He et al. do, and each block as its shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock | Bottleneck):
                weight = getattr(module.last_norm, "weight", None)
                if weight is not None:
                    nn.init.zeros_(weight)

    def stem(self, x: Tensor) -> Tensor:
        """The layers before the stages: (B, in_channels, H, W) -> (B, 64, H / 4, W / 4)."""
        found: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return found

    def features(self, x: Tensor) -> list[Tensor]:
        """Each stage's map for images (B, in_channels, H, W), the finest first."""
        found: list[Tensor] = self(x, every_stage=True)
        return found

    def _stages(self, x: Tensor, *, checkpointed: bool) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for index in range(len(self.channels)):
            layer = self.get_submodule(f"layer{index + 1}")
            x = checkpoint(layer, x, use_reentrant=False) if checkpointed is True else layer(x)
            maps.append(x)
        return maps

    def forward(
        self, x: Tensor, *, every_stage: bool = False, checkpointed: bool = False
    ) -> Tensor | list[Tensor]:
        """Logits (B, num_classes), or the last stage's map (B, C, H, W) without a classifier.

        Args:
            x: images (B, in_channels, H, W).
            every_stage: return the map of each stage instead, the finest first.
            checkpointed: the backward pass computes each stage again.
        """
        maps = self._stages(x, checkpointed=checkpointed)
        if every_stage is True:  # torch.fx passes a Proxy, which has no truth value
            return maps
        x = maps[-1]
        if self.avgpool is None or self.dropout is None or self.fc is None:
            return x
        logits: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, the block of ResNet-18 and 34.

    Attributes:
        se: acts on the residual branch, after its last norm, if not None. timm's name.
    """

    def __init__(
        self, channels: int, width: int, stride: int, drop_path_rate: float, norm_layer: NormLayer
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm_layer(width)
        self.se: nn.Module | None = None
        self.downsample = _shortcut(channels, width, stride, norm_layer)
        self.drop_path = DropPath(drop_path_rate)

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose scale multiplies the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H / stride, W / stride)."""
        kept = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x = self.drop_path(x if self.se is None else self.se(x))
        out: Tensor = self.relu(x + kept)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, the block of deeper ResNets.

    Attributes:
        se: acts on the residual branch, after its last norm, if not None. timm's name.
    """

    expansion = 4

    def __init__(
        self,
        channels: int,
        width: int,
        out_channels: int,
        stride: int,
        stride_in_1x1: bool,
        drop_path_rate: float,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(channels, width, 1, stride=first, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=second, padding=1, bias=False)
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.se: nn.Module | None = None
        self.downsample = _shortcut(channels, out_channels, stride, norm_layer)
        self.drop_path = DropPath(drop_path_rate)

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose scale multiplies the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H / stride, W / stride)."""
        kept = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x = self.drop_path(x if self.se is None else self.se(x))
        out: Tensor = self.relu(x + kept)
        return out


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): training skips a branch at random for each sample.

    Args:
        rate: probability that a sample's branch is skipped. The others are divided by 1 - rate.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        _check_rate("rate", rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if is_traced(x):  # for training and evaluation
            return cast(Tensor, leaf(self, x))
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"{self.rate:.3g}"


def _check_rate(name: str, rate: float) -> None:
    checks.number(name, rate)
    if not 0 <= rate < 1:
        raise ValueError(f"`{name}` must be in [0, 1), got {rate}")


def _shortcut(channels: int, out_channels: int, stride: int, norm_layer: NormLayer) -> nn.Sequential | None:
    if stride == 1 and channels == out_channels:
        return None
    convolution = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, norm_layer(out_channels))

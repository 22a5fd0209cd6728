"""The ResNets that the paper starts from and compares with (He et al., arXiv 1512.03385).

Parameters have torchvision's names, so that checkpoints of torchvision and timm fit.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

# Blocks in each stage, and whether they are bottlenecks.
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
Norm = Callable[[int], nn.Module]


class ResNet(nn.Module):
    """ResNet-18, 34, 50 or 101, whole or cut off after a stage.

    Args:
        depth: 18, 34, 50 or 101.
        num_classes: of the classifier; None for none: the module then returns the last stage's map.
        stages: how many of the four stages there are; a classifier needs no certain number.
        stride_in_1x1: a bottleneck's stride stands in its first 1x1 convolution, as in the original and in
            detection code, and not in its 3x3, as in torchvision's.
        drop_path: chance that a block's residual branch is left out of a sample in training. It rises
            linearly from the first block to this at the last.
        dropout: before the classifier.
        norm: makes the norm of so many channels.

    Attributes:
        channels: of each stage's map.
        strides: of each stage's map, in pixels of the image.

    Raises:
        ValueError: an unknown depth, or a number of stages other than 1 to 4.

    Example:
        >>> import torch
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
        stages: int = 4,
        stride_in_1x1: bool = False,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"`depth` must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        if not 1 <= stages <= 4:
            raise ValueError(f"`stages` must be 1 to 4, got {stages}")
        counts, deep = DEPTHS[depth]
        blocks = sum(counts[:stages])
        chances = iter([drop_path * index / max(blocks - 1, 1) for index in range(blocks)])
        self.depth = depth
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for index, count in enumerate(counts[:stages]):
            width = 64 << index
            layer = nn.Sequential()
            for block in range(count):
                stride = 2 if block == 0 and index > 0 else 1
                made: nn.Module
                if deep:
                    made = Bottleneck(channels, width, stride, stride_in_1x1, next(chances), norm)
                    channels = width * Bottleneck.expansion
                else:
                    made = BasicBlock(channels, width, stride, next(chances), norm)
                    channels = width
                layer.append(made)
            self.add_module(f"layer{index + 1}", layer)
        expansion = Bottleneck.expansion if deep else 1
        self.channels = tuple((64 << index) * expansion for index in range(stages))
        self.strides = tuple(4 << index for index in range(stages))
        self.avgpool = nn.AdaptiveAvgPool2d(1) if num_classes else None
        self.dropout = nn.Dropout(dropout) if num_classes else None
        self.fc = nn.Linear(channels, num_classes) if num_classes else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolutions as He et al. do; each block starts as its shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock | Bottleneck):
                weight = getattr(module.last_norm, "weight", None)
                if weight is not None:
                    nn.init.zeros_(weight)

    def stem(self, x: Tensor) -> Tensor:
        """What comes before the stages: (B, 3, H, W) -> (B, 64, H / 4, W / 4)."""
        found: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return found

    def features(self, x: Tensor) -> list[Tensor]:
        """Each stage's map of images (B, 3, H, W), the finest first."""
        x = self.stem(x)
        maps = []
        for index in range(len(self.channels)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes), or without a classifier the last stage's map (B, C, H, W)."""
        x = self.features(x)[-1]
        if self.avgpool is None or self.dropout is None or self.fc is None:
            return x
        logits: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, the block of ResNet-18 and 34."""

    def __init__(self, channels: int, width: int, stride: int, drop_path: float, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _shortcut(channels, width, stride, norm)
        self.drop_path = DropPath(drop_path)

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose scale is what the residual branch is multiplied by."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H / stride, W / stride)."""
        kept = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.drop_path(self.bn2(self.conv2(x)))
        out: Tensor = self.relu(x + kept)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, the block of ResNet-50 and 101."""

    expansion = 4

    def __init__(
        self, channels: int, width: int, stride: int, stride_in_1x1: bool, drop_path: float, norm: Norm
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, stride=first, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=second, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, out_channels, stride, norm)
        self.drop_path = DropPath(drop_path)

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose scale is what the residual branch is multiplied by."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 width, H / stride, W / stride)."""
        kept = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.drop_path(self.bn3(self.conv3(x)))
        out: Tensor = self.relu(x + kept)
        return out


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): in training, leave out a sample's branch by chance.

    Args:
        chance: that a sample's branch is left out. What stays is divided by 1 - chance.
    """

    def __init__(self, chance: float = 0.0) -> None:
        super().__init__()
        if not 0 <= chance < 1:
            raise ValueError(f"`drop_path` must be in [0, 1), got {chance}")
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.chance == 0:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.chance)
        return x * kept.div_(1 - self.chance)

    def extra_repr(self) -> str:
        """The chance, for printing."""
        return f"{self.chance:.3g}"


def _shortcut(channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), norm(out_channels))

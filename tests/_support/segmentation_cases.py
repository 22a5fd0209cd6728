"""Small necks and networks with random parameters, and maps and images for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vt_fast.models import FPN, VTFPN, ResNet, SegmentationNet, fpn, vt_fpn
from vt_fast.nn import LinearPositionCode

IN_CHANNELS, C, L, CT, CLASSES = (6, 10, 14), 16, 3, 24, 5
SIZES = ((13, 9), (7, 5), (4, 3))


def group_norm(channels: int) -> nn.Module:
    """A norm for few channels."""
    return nn.GroupNorm(4, channels)


def neck(**options: object) -> VTFPN:
    """A small VT-FPN neck."""
    return VTFPN(IN_CHANNELS, C, **{"num_tokens": L, "token_channels": CT, "query_groups": 4, **options})


# One for each constructor argument.
NECKS: dict[str, Callable[[], VTFPN]] = {
    "default": neck,
    "tokens": lambda: neck(num_tokens=2),
    "token channels": lambda: neck(token_channels=C),
    "clustering": lambda: neck(tokenizer="clustering"),
    "pooling": lambda: neck(tokenizer="pooling"),
    "static": lambda: neck(tokenizer="static", group_width=4),
    "value convolution": lambda: neck(group_width=8),
    "graph": lambda: neck(relation="graph"),
    "no relation": lambda: neck(relation="none"),
    "num_heads": lambda: neck(num_heads=2, num_token_heads=3, token_groups=2),
    "no query": lambda: neck(query_groups=None),
    "no token norm": lambda: neck(token_norm=None),
    "variant v1": lambda: neck(variant="v1", token_groups=4),
    "position": lambda: neck(position=LinearPositionCode(5, 3)),
    "norm": lambda: neck(norm_layer=group_norm),
}

SMALL = {"channels": C, "head_channels": 8, "head_norm_layer": group_norm}
TOKENS = {"num_tokens": L, "token_channels": CT, "query_groups": 4}


class SmallBackbone(nn.Module):
    """A backbone needs only these three attributes: here one convolution and norm per level."""

    channels, strides = IN_CHANNELS, (4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        before = (3, *IN_CHANNELS[:-1])
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(one, two, 5, stride=4 if index == 0 else 2, padding=2, bias=False),
                nn.BatchNorm2d(two),
                nn.ReLU(),
            )
            for index, (one, two) in enumerate(zip(before, IN_CHANNELS, strict=True))
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps of the three levels."""
        return [x := level(x) for level in self.levels]


NETS: dict[str, Callable[[], SegmentationNet]] = {
    "FPN": lambda: fpn(num_classes=CLASSES, backbone=SmallBackbone(), **SMALL),
    "VT-FPN": lambda: vt_fpn(num_classes=CLASSES, backbone=SmallBackbone(), **SMALL, **TOKENS),
    "VT-FPN on ResNet": lambda: vt_fpn(
        num_classes=CLASSES, backbone=ResNet(18, stages=2, stride_in_1x1=True), **SMALL, **TOKENS
    ),
}


def randomised(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The module in `dtype` with no parameter at zero, so that neither gradients nor tokens vanish."""
    module = module.to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        spread = 1 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.7
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(noise * spread)
    return module


def levels(dtype: torch.dtype = torch.float64, batch: int = 2) -> list[Tensor]:
    """Maps for a neck, which require gradients."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
        for channels, size in zip(IN_CHANNELS, SIZES, strict=True)
    ]


def images(height: int = 37, width: int = 29, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    """Images of an odd size."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


def plain_neck() -> FPN:
    """A small FPN neck."""
    return FPN(IN_CHANNELS, C)

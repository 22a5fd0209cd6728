"""The networks: one backbone for all classifiers and one for all segmentation nets, and what follows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vt_fast.models import VTFPN, SegmentationNet, VTResNet, fpn, vt_fpn
from vt_fast.models.resnet import BasicBlock
from vt_fast.nn import set_backend

# Width of the backbone's map, of the last stage and of the tokens: an eighth of VT-ResNet-18's.
_CHANNELS, _WIDTH, _TOKEN_CHANNELS = 32, 64, 128
# With this width the convolutional stage has the MACs of the VT stage as the paper writes it; a test counts.
_EQUAL = 49
_VT: dict[str, Any] = {
    "num_blocks": 2,
    "num_tokens": 16,
    "width": _WIDTH,
    "token_channels": _TOKEN_CHANNELS,
    "group_width": 16,
    "num_heads": 4,
    "num_token_heads": 4,
}
# What is changed in the VT stage. Relations without attention have no heads.
VT_NETS: dict[str, dict[str, Any]] = {
    "vt": {},
    "vt-filter": {"later_tokenizer": "filter"},
    "vt-pooling": {"tokenizer": "pooling"},
    "vt-clustering": {"tokenizer": "clustering"},
    "vt-graph": {"relation": "graph", "num_token_heads": 1},
    "vt-none": {"relation": "none", "num_token_heads": 1},
    "vt-32": {"num_tokens": 32},
    "vt-64": {"num_tokens": 64},
    "vt-no-projector": {"projector": False},
}
_VT_FPN: dict[str, Any] = {"token_channels": 128, "query_groups": 4}
_FPN: dict[str, dict[str, Any]] = {
    "vt-fpn": {},
    "vt-fpn-batch": {"token_norm": "batch"},
    "vt-fpn-none": {"relation": "none", "token_groups": 1},
}


def make(name: str, classes: int, stride: int = 2) -> nn.Module:
    """The network called `name`.

    Args:
        name: "backbone", "conv", "conv-equal", "conv-hidden", "fpn", or one of the VT nets.
        classes: of the classifier or of the pixels.
        stride: of a classifier's backbone, 2 or 4.

    Example:
        >>> make("vt", 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> make("vt-fpn", 6)(torch.zeros(2, 3, 48, 48)).shape
        torch.Size([2, 6, 48, 48])
    """
    if name in ("fpn", *_FPN):
        neck: dict[str, Any] = (
            {} if name == "fpn" else {"token_channels": 128, "query_groups": 4} | _FPN[name]
        )
        return _initialised(
            (vt_fpn if neck else fpn)(
                num_classes=classes,
                backbone=_Levels(),
                channels=48,
                head_channels=32,
                head_norm_layer=lambda width: nn.GroupNorm(8, width),
                **neck,
            )
        )
    if name in VT_NETS:
        options: dict[str, Any] = {
            "backbone": _backbone(stride),
            "backbone_channels": _CHANNELS,
            "num_classes": classes,
        }
        return _initialised(VTResNet(**options | _VT | VT_NETS[name]))
    hidden = [nn.Linear(_WIDTH, _TOKEN_CHANNELS), nn.ReLU()] if name == "conv-hidden" else []
    width = {"conv": _WIDTH, "conv-hidden": _WIDTH, "conv-equal": _EQUAL, "backbone": _CHANNELS}[name]
    stage = (
        []
        if name == "backbone"
        else [
            BasicBlock(_CHANNELS, width, 2, 0.0, nn.BatchNorm2d),
            BasicBlock(width, width, 1, 0.0, nn.BatchNorm2d),
        ]
    )
    head = nn.Linear(_TOKEN_CHANNELS if hidden else width, classes)
    return _initialised(
        nn.Sequential(_backbone(stride), *stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *hidden, head)
    )


def macs(name: str, classes: int, stride: int, image: Tensor) -> tuple[int, int]:
    """MACs of one image as the paper writes them, and as executed with folded projections."""
    from tools.paper import counting

    with torch.device("meta"):
        net = make(name, classes, stride)
    probe = torch.empty(1, *image.shape, device="meta")
    found = []
    for backend in ("reference", "torch"):
        set_backend(net, backend)
        found.append(counting.macs(net, probe))
    return found[0], found[1]


def attention_maps(net: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """What the tokens look at, (B, L, H, W) for each block or level; none for nets without tokens."""
    if isinstance(net, VTResNet):
        x, tokens = net.backbone(images), None
        for block in net.stage:
            if block.tokenizer is not None:  # without projectors only the first block has one
                yield block.attention_maps(x, tokens).flatten(1, -3)
            y, tokens = block(x, tokens)
            x = x if y is None else y
    elif isinstance(net, SegmentationNet) and isinstance(net.neck, VTFPN):
        features: Any = net.backbone.features
        yield from net.neck.attention_maps(features(images))


class _Levels(nn.Module):
    """Three maps of strides 2, 4 and 8."""

    channels, strides = (24, 32, 48), (2, 4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [
                nn.Sequential(_convolution(3, 16), _convolution(16, 24, 2)),
                nn.Sequential(_convolution(24, 32, 2), _convolution(32, 32)),
                nn.Sequential(_convolution(32, 48, 2), _convolution(48, 48)),
            ]
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """The three maps."""
        found: list[Tensor] = []
        for level in self.levels:
            found.append(level(found[-1] if found else x))
        return found


def _backbone(stride: int) -> nn.Module:
    first = _convolution(1, 16, stride // 2)
    return nn.Sequential(first, _convolution(16, _CHANNELS, 2), _block(_CHANNELS, _CHANNELS))


def _block(channels: int, width: int, stride: int = 1) -> nn.Module:
    return BasicBlock(channels, width, stride, 0.0, nn.BatchNorm2d)


def _convolution(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _initialised(net: nn.Module) -> nn.Module:
    """3x3 convolutions as He et al. do, and residual blocks that begin as their shortcuts."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)  # type: ignore[arg-type]
    return net

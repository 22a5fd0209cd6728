"""ResNets with attention: the networks that the paper's table 8 compares with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from torch.types import Device

from vt_fast import checks
from vt_fast.models.attention.augmented import AugmentedConv2d
from vt_fast.models.attention.double_attention import DoubleAttention
from vt_fast.models.attention.gates import cbam, squeeze_excitation
from vt_fast.models.attention.global_reasoning import GlobalReasoning
from vt_fast.models.attention.local import AttentionStem, LocalRelation, StandAloneAttention
from vt_fast.models.attention.san import SAN
from vt_fast.models.contexts import on_device
from vt_fast.models.resnet import ResNet
from vt_fast.nn import set_backend

KINDS = ("se", "cbam", "a2", "glore", "aa", "sasa", "lr")


def attention_resnet(
    kind: str,
    depth: int,
    num_classes: int | None = 1000,
    *,
    image_size: int = 224,
    unfold: bool = False,
    backend: str | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> ResNet:
    """A ResNet with attention. What it shares with a :class:`ResNet` has the same names.

    - "se", "cbam": a gate at the end of each residual branch, from timm, as timm names it.
    - "a2", "glore": :class:`DoubleAttention` or :class:`GlobalReasoning` after three blocks of the third
      stage, or all; "a2", and "glore" with depth 200, also after two of the second. They are named after the
      block before: "layer3.1_unit".
    - "aa": :class:`AugmentedConv2d` for the 3x3 convolutions of the last three stages, in a basic block for
      the first one. 8 heads with 20 key channels each; a tenth of the channels are attention's, with
      basic blocks a quarter. The second stage's attention runs on a map that is pooled once more.
    - "sasa": :class:`StandAloneAttention` for all 3x3 convolutions and :class:`AttentionStem` for the first.
    - "lr": :class:`LocalRelation` for all 3x3 convolutions, in bottlenecks 100 / 64 as wide.

    Args:
        kind: one of the above.
        depth: of the :class:`ResNet`; "sasa" and "lr" need one with bottlenecks.
        num_classes: of the classifier; None for none, which returns the last stage's map.
        image_size: height and width of the largest image that "aa" takes.
        unfold: of "sasa" and "lr"; see :mod:`vt_fast.models.attention.windows`.
        backend: of "a2" and "glore"; see :func:`vt_fast.nn.set_backend`.
        device, dtype: of the parameters.
        **options: of :class:`ResNet`.

    Raises:
        ValueError: an unknown kind, or a depth or a number of stages that it cannot have.
        ModuleNotFoundError: timm, which "se" and "cbam" need, is not installed.

    Example:
        >>> attention_resnet("a2", 50, num_classes=10)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    checks.choice("kind", kind, KINDS)
    checks.counts(image_size=image_size)
    if kind == "lr":
        options.setdefault("width_per_group", 100)
    if kind in ("sasa", "lr") and depth in (18, 34):
        raise ValueError(f'`depth` must be one with bottlenecks for "{kind}", got {depth}')
    if kind in ("a2", "glore") and options.get("stages", 4) < 3:
        raise ValueError(f'`stages` must be 3 or 4 for "{kind}", got {options["stages"]}')
    net = ResNet(depth, num_classes, device=device, **options)
    with on_device(device):
        if kind == "se":
            _gate(net, squeeze_excitation)
        elif kind == "cbam":
            _gate(net, cbam)
        elif kind in ("a2", "glore"):
            unit = DoubleAttention if kind == "a2" else GlobalReasoning
            _insert(net, 3, 3, unit)
            if kind == "a2" or depth == 200:
                _insert(net, 2, 2, unit)
        elif kind == "aa":
            _augment(net, image_size)
        else:
            _replace(net, kind, unfold)
    set_backend(net, backend)
    return net.to(dtype=dtype)


def _layer(net: ResNet, stage: int) -> nn.Sequential:
    return cast(nn.Sequential, net.get_submodule(f"layer{stage}"))


def _gate(net: ResNet, gate: Callable[[int], nn.Module]) -> None:
    for stage, channels in enumerate(net.channels, 1):
        for block in _layer(net, stage):
            block.se = gate(channels)


def _insert(net: ResNet, stage: int, count: int, unit: Callable[[int], nn.Module]) -> None:
    """Put units behind blocks at equal distances, the last one behind the last block."""
    blocks = list(_layer(net, stage))
    chosen = [(index + 1) * len(blocks) // count - 1 for index in range(count)]
    layer = nn.Sequential()
    for index, block in enumerate(blocks):
        layer.add_module(str(index), block)
        if index in chosen:
            layer.add_module(f"{index}_unit", unit(net.channels[stage - 1]))
    setattr(net, f"layer{stage}", layer)


def _augment(net: ResNet, image_size: int) -> None:
    # A tenth of the channels of a bottleneck, a quarter of those of a basic block.
    name, share = ("conv2", 10) if net.bottlenecks else ("conv1", 4)
    for stage in range(2, len(net.channels) + 1):
        pool = 2 if stage == 2 else 1
        for block in _layer(net, stage):
            replaced = getattr(block, name)
            augmented = AugmentedConv2d(
                replaced.in_channels,
                replaced.out_channels,
                stride=replaced.stride[0],
                value_channels=replaced.out_channels // share // 8 * 8,
                pool=pool,
                max_size=-(-image_size // (net.strides[stage - 1] * pool)),
            )
            setattr(block, name, augmented)


def _replace(net: ResNet, kind: str, unfold: bool) -> None:
    make: Callable[..., nn.Module] = StandAloneAttention if kind == "sasa" else LocalRelation
    for stage in range(1, len(net.channels) + 1):
        for block in _layer(net, stage):
            replaced = cast(nn.Conv2d, block.conv2)
            block.conv2 = make(replaced.in_channels, stride=replaced.stride[0], unfold=unfold)
    if kind == "sasa":
        stem = AttentionStem(net.conv1.in_channels, 64, unfold=unfold)
        net.add_module("conv1", stem)
        net.maxpool = nn.MaxPool2d(4, ceil_mode=True)


def _named() -> Mapping[str, Callable[..., nn.Module]]:
    depths = {
        "se": (18, 34, 50, 101),
        "cbam": (18, 34, 50, 101),
        "lr": (18, 50, 101),
        "aa": (34, 50, 101),
        "sasa": (50,),
        "a2": (50,),
        "glore": (50, 200),
    }
    found: dict[str, Callable[..., nn.Module]] = {}
    for kind, each in depths.items():
        for depth in each:
            # The counts that are printed for LR-ResNet-18 are those of bottlenecks.
            bottlenecks = 26 if (kind, depth) == ("lr", 18) else depth
            found[f"{kind}_resnet{depth}"] = partial(attention_resnet, kind, bottlenecks)
    for variant in ("pairwise", "patchwise"):
        found[f"san19_{variant}"] = partial(SAN, variant, 19)
    return MappingProxyType(found)


#: The networks of table 8 by name, such as "se_resnet50"; each takes the options of :func:`attention_resnet`
#: or :class:`SAN`.
NETWORKS = _named()

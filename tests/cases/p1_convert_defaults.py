"""timm and torchvision nets whose widths are no multiples of 64, and a compiled model: convert() as it is documented."""

import sys

import _with_torchvision  # noqa: F401
import torch
import torchvision

from vt_fast import convert

nets = torchvision.models
bad = []
for what, make, stage in (
    ("efficientnet_b0", lambda: nets.efficientnet_b0(weights=None), "features.7"),
    ("regnet_y_400mf", lambda: nets.regnet_y_400mf(weights=None), "trunk_output.block4"),
    (
        "torch.compile(resnet18)",
        lambda: torch.compile(nets.resnet18(weights=None), backend="eager"),
        "layer4",
    ),
):
    try:
        convert(make(), stage)
    except (ValueError, KeyError) as error:
        bad.append(f"{what}: {type(error).__name__}: {error}")
sys.exit("\n".join(bad) or None)

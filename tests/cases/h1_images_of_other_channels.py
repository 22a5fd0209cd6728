"""segmentation_models#22, mmsegmentation#667, torchgeo#1351: multispectral or grey images with a backbone for them."""

import sys

import torch

from vt_fast.models import FPN, FeaturePyramid, ResNet, vt_fpn

bad = []
for channels in (1, 4):
    backbone = ResNet(18)
    backbone.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    x = torch.randn(1, channels, 64, 64)
    backbone(x)
    for make in (
        lambda t: vt_fpn(backbone=t, num_classes=3, num_tokens=2, token_channels=32),
        lambda t: FeaturePyramid(t, FPN(t.channels)),
    ):
        try:
            make(backbone)(x)
        except ValueError as error:
            bad.append(str(error))
sys.exit("\n".join(bad) or None)

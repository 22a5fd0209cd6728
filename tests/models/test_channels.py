"""Images of 1, 2, 4 and 10 channels in every network, and a checkpoint of images of three."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vt_fast import models

SMALL = {"num_tokens": 2, "token_channels": 32}
CHANNELS = (1, 2, 4, 10)


def converted(channels):
    model = models.ResNet(18, num_classes=3, in_channels=channels)
    return models.convert(model, **SMALL)


NETWORKS = {
    "ResNet": lambda c: models.ResNet(18, num_classes=3, in_channels=c),
    "VTResNet": lambda c: models.VTResNet(18, 3, in_channels=c, **SMALL),
    "vt_resnet18": lambda c: models.vt_resnet18(3, in_channels=c, **SMALL),
    "VTResNetFeatures": lambda c: models.VTResNetFeatures(18, in_channels=c, **SMALL),
    "fpn": lambda c: models.fpn(18, 3, in_channels=c),
    "vt_fpn": lambda c: models.vt_fpn(18, 3, in_channels=c, **SMALL),
    "vt_fpn of a backbone": lambda c: models.vt_fpn(backbone=models.ResNet(18, in_channels=c), **SMALL),
    "FeaturePyramid": lambda c: models.FeaturePyramid(
        models.ResNet(18, in_channels=c), models.VTFPN((64, 128, 256, 512), **SMALL)
    ),
    "a backbone of one's own": lambda c: models.VTResNet(
        backbone=nn.Conv2d(c, 64, 4, stride=4), num_classes=3, **SMALL
    ),
    "convert": converted,
}


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_channels(name, channels):
    with torch.device("meta"):
        model = NETWORKS[name](channels)
        found = model(torch.empty(2, channels, 64, 64))
    each = (
        found
        if isinstance(found, torch.Tensor)
        else next(iter(found.values() if isinstance(found, dict) else found))
    )
    assert each.shape[0] == 2


@pytest.mark.parametrize("channels", [1, 10])
@pytest.mark.parametrize("name", ["VTResNet", "VTResNetFeatures", "vt_fpn", "FeaturePyramid"])
def test_images_of_other_channels_are_refused(name, channels):
    with pytest.raises((ValueError, RuntimeError), match=r"channels|`images` must be"):
        NETWORKS[name](channels)(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("given", ["network", "state dict"])
def test_a_checkpoint_of_three_channels(given, channels):
    """All but the first convolution is loaded, which is reported and stays; adapted by the caller it fits."""
    source = models.ResNet(18, num_classes=5)
    checkpoint = source if given == "network" else source.state_dict()
    model = models.VTResNet(18, 3, in_channels=channels, **SMALL)
    before = model.backbone.conv1.weight.clone()
    report = models.load_backbone(model, checkpoint)
    assert report.mismatched == {"conv1.weight": ((64, 3, 7, 7), (64, channels, 7, 7))}
    assert not report.missing
    assert not report.complete
    assert torch.equal(model.backbone.conv1.weight, before)
    assert torch.equal(model.backbone.layer3[1].conv2.weight, source.layer3[1].conv2.weight)
    adapted = source.state_dict()
    adapted["conv1.weight"] = adapted["conv1.weight"].mean(1, keepdim=True).expand(-1, channels, -1, -1)
    assert models.load_backbone(model, adapted).complete
    assert torch.equal(model.backbone.conv1.weight[:, 0], source.conv1.weight.mean(1))


def test_in_channels_belong_to_a_backbone_of_ones_own():
    for make in (models.fpn, models.vt_fpn, models.VTResNet):
        with pytest.raises(ValueError, match=r"`in_channels` must be 3 with `backbone`, .* got 4"):
            make(backbone=models.ResNet(18, stages=3), in_channels=4)

"""`device` and `dtype` of the constructors."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.utils import skip_init

from tests._support.model_cases import SMALL, small_backbone
from tests._support.segmentation_cases import IN_CHANNELS, TOKENS, C, group_norm
from vt_fast import models

MAKERS = {
    "ResNet": (models.ResNet, (18, 5), {}),
    "ResNet with another norm": (models.ResNet, (50,), {"norm_layer": group_norm, "stages": 2}),
    "VTResNet": (models.VTResNet, (18, 5), SMALL),
    "VTResNet v1": (models.VTResNet, (18, 5), {**SMALL, "tokenizer": "static", "position": "conv"}),
    "VTResNetFeatures": (models.VTResNetFeatures, (18,), {**SMALL, "relation": "graph"}),
    "VTStage": (models.VTStage, (32, 2, 64), {**SMALL, "tokenizer": "clustering"}),
    "FPN": (models.FPN, (IN_CHANNELS, C), {"norm_layer": group_norm}),
    "VTFPN": (models.VTFPN, (IN_CHANNELS, C), {"norm_layer": torch.nn.BatchNorm2d, **TOKENS}),
    "PanopticHead": (models.PanopticHead, (5, C), {"channels": 8, "norm_layer": group_norm}),
    "fpn": (models.fpn, (18, 5), {}),
    "vt_fpn": (models.vt_fpn, (18, 5), TOKENS),
}


@pytest.mark.parametrize("name", MAKERS)
def test_they_reach_every_parameter_and_buffer(name):
    make, arguments, options = MAKERS[name]
    model = make(*arguments, **options, device="meta", dtype=torch.bfloat16)
    for key, value in model.state_dict().items():
        assert value.device.type == "meta", key
        assert value.dtype == torch.bfloat16 or key.endswith("num_batches_tracked"), key


@pytest.mark.parametrize("name", [name for name in MAKERS if inspect.isclass(MAKERS[name][0])])
def test_skip_init(name):
    make, arguments, options = MAKERS[name]
    model = skip_init(make, *arguments, **options, dtype=torch.float64)
    expected = make(*arguments, **options).double()
    model.load_state_dict(expected.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key


def test_they_do_not_change_the_random_numbers():
    torch.manual_seed(3)
    plain = models.VTResNet(18, 5, **SMALL).double().state_dict()
    torch.manual_seed(3)
    given = models.VTResNet(18, 5, **SMALL, device="cpu").double().state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in given.items())


def test_a_given_backbone_keeps_its_own():
    backbone = small_backbone()
    model = models.VTResNet(backbone=backbone, num_classes=5, **SMALL, dtype=torch.float64)
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}
    assert {value.dtype for value in model.stage.parameters()} == {torch.float64}
    assert model.fc.weight.dtype == torch.float64

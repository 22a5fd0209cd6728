"""Networks whose backbone is wrapped: the wrapper is called, and the maps are all there."""

import copy

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper

from tests._support.model_cases import assert_same, made, outputs_and_gradients, small_backbone
from vt_fast import models
from vt_fast.models.resnet import ResNet

pytestmark = [pytest.mark.one_backend, pytest.mark.on_cpu]
SMALL = {"num_tokens": 4, "token_channels": 32, "group_width": 32}

NETS = {
    "classifier": lambda: models.VTResNet(None, 5, backbone=ResNet(18, stages=2), num_blocks=1, **SMALL),
    "features": lambda: models.VTResNetFeatures(18, num_blocks=1, **SMALL),
    "segmenter": lambda: models.vt_fpn(
        18, 5, backbone=ResNet(18, stages=2), channels=32, head_channels=32, num_tokens=4, token_channels=32
    ),
}


def test_a_compiled_backbone_does_not_run_on_a_map_without_data():
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    compiled = torch.compile(small_backbone(), backend=backend)
    for kind in (models.VTResNet, models.VTResNetFeatures):
        net = kind(backbone=compiled, num_blocks=1, num_tokens=4, token_channels=32, group_width=32).eval()
        assert net.stage[0].tokenizer.channels == 32
        assert not seen
    net(torch.zeros(1, 3, 24, 24))
    assert seen


@pytest.mark.parametrize("name", NETS)
def test_a_wrapped_backbone_is_called(name, monkeypatch):
    net = made(NETS[name]).eval()
    wrapped, calls, forward = copy.deepcopy(net), [], CheckpointWrapper.forward
    wrapped.backbone = checkpoint_wrapper(wrapped.backbone)

    def noted(self, *args, **options):
        calls.append(self)
        return forward(self, *args, **options)

    monkeypatch.setattr(CheckpointWrapper, "forward", noted)
    images = torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = outputs_and_gradients(wrapped, images)
    assert calls == [wrapped.backbone]
    found = {key.replace("_checkpoint_wrapped_module.", ""): value for key, value in found.items()}
    assert_same(found, outputs_and_gradients(net, images))

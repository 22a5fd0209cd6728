"""torch.fx, and the feature extractors of torchvision and timm that use it."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from tests._support import torchvision_stub
from vt_fast import models
from vt_fast.nn import FilterTokenizer, VisualTransformer, VisualTransformerStack

SMALL = {"num_tokens": 4, "token_channels": 64}
NECK = {"num_tokens": 2, "token_channels": 32}

NETWORKS = {
    "VTResNet": lambda: models.VTResNet(18, 5, **SMALL),
    "VTResNet with drop path": lambda: models.VTResNet(18, 5, drop_path_rate=0.1, **SMALL),
    "VTResNet of pooling": lambda: models.VTResNet(18, 5, tokenizer="pooling", **SMALL),
    "VTResNet of clustering": lambda: models.VTResNet(18, 5, tokenizer="clustering", **SMALL),
    "VTResNetFeatures": lambda: models.VTResNetFeatures(18, **SMALL),
    "VTResNetFeatures of two maps": lambda: models.VTResNetFeatures(18, out_indices=(0, -1), **SMALL),
    "ResNet": lambda: models.ResNet(18, num_classes=5),
    "ResNet-50": lambda: models.ResNet(50, num_classes=5),
    "converted": lambda: models.convert(models.ResNet(18, num_classes=5), **SMALL),
    "vt_fpn": lambda: models.vt_fpn(18, 5, **NECK),
    "fpn": lambda: models.fpn(18, 5),
    "FeaturePyramid": lambda: models.FeaturePyramid(
        models.ResNet(18), models.VTFPN((64, 128, 256, 512), **NECK)
    ),
    "blocks": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), _Map(VisualTransformer(8, 4)), _Map(VisualTransformerStack(8, 2))
    ),
}


class _Map(nn.Module):
    """A block's map without its tokens."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x)[0]


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return list(found.values() if isinstance(found, dict) else found)


@pytest.mark.parametrize("name", NETWORKS)
def test_symbolic_trace(name):
    """The graph computes what the network does, for other sizes too, and so do its gradients."""
    model = NETWORKS[name]()
    traced = fx.symbolic_trace(model).eval()
    model.eval()
    for shape in ((1, 3, 64, 64), (2, 3, 70, 49)):
        images = torch.randn(shape)
        expected, found = tensors(model(images)), tensors(traced(images))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
    parameters = list(model.parameters())
    for one, other in zip(
        *(
            torch.autograd.grad(sum(y.sum() for y in each), parameters, allow_unused=True)
            for each in (found, expected)
        ),
        strict=True,
    ):
        assert (one is None and other is None) or torch.equal(one, other)
    nodes = {
        type(traced.get_submodule(node.target)) for node in traced.graph.nodes if node.op == "call_module"
    }
    assert not any(kind.__module__.startswith("vt_fast.nn.tok") for kind in nodes), "a block is one node"


def test_training_mode_is_kept():
    model = models.ResNet(18, drop_path_rate=0.9)
    for block in model.modules():
        if hasattr(block, "last_norm"):
            nn.init.ones_(block.last_norm.weight)
    traced, images = fx.symbolic_trace(model.eval()), torch.randn(2, 3, 64, 64)
    assert torch.equal(traced(images), traced(images))
    assert not torch.equal(traced.train()(images), traced(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisualTransformerStack(8, 2), "cannot trace into VisualTransformerStack, which is one node"),
        (
            lambda: models.VTFPN((4,), **NECK),
            "cannot trace into VTFPN, .*: trace the network that contains it",
        ),
        (
            lambda: nn.Sequential(FilterTokenizer(8, 4)),
            "got Proxy: .* list the module as a leaf of the tracer",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        fx.symbolic_trace(make())


def test_the_way_out_of_a_refusal():
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, FilterTokenizer) or super().is_leaf_module(module, name)

    model, x = nn.Sequential(FilterTokenizer(8, 4)), torch.randn(1, 8, 6, 6)
    assert torch.equal(fx.GraphModule(model, Tracer().trace(model))(x), model(x))


@pytest.fixture
def extraction():
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    from torchvision.models import feature_extraction

    return feature_extraction


def test_torchvisions_extractor(extraction):
    model, images = models.VTResNet(18, 5, **SMALL).eval(), torch.randn(2, 3, 64, 64)
    names = extraction.get_graph_node_names(model)[1]
    assert {"backbone.layer2.1.relu_1", "stage", "fc"} <= set(names)
    found = extraction.create_feature_extractor(model, ["backbone.layer2", "stage", "fc"])(images)
    maps = model.backbone.features(images)
    assert torch.equal(found["backbone.layer2"], maps[1])
    assert torch.equal(found["stage"][1], model.forward_features(images))
    assert torch.equal(found["fc"], model(images))


def test_torchvisions_extractor_on_a_pyramid(extraction):
    model, images = NETWORKS["FeaturePyramid"]().eval(), torch.randn(1, 3, 64, 64)
    found = extraction.create_feature_extractor(model, {"neck.getitem": "p2", "backbone.layer4": "c5"})(
        images
    )
    assert torch.equal(found["p2"], model(images)["0"])
    assert torch.equal(found["c5"], model.backbone.features(images)[3])


def test_torchvisions_extractor_drops_what_is_not_asked_for(extraction):
    model = models.convert(models.ResNet(18, num_classes=5), **SMALL).eval()
    extractor = extraction.create_feature_extractor(model, ["layer3"])
    assert "layer4" not in extractor._modules
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(extractor(images)["layer3"], model.features(images)[2])


def test_timms_features(extraction):
    timm = pytest.importorskip("timm")
    from timm.models._features import FeatureGetterNet

    models.register_with_timm()
    images = torch.randn(2, 3, 64, 64)
    model = timm.create_model("vt_resnet18", num_classes=5, **SMALL).eval()
    maps = model.backbone.features(images)
    for kind in (timm.models.FeatureGraphNet, timm.models.FeatureHookNet, FeatureGetterNet):
        net = kind(model, out_indices=(0, 2))
        for found, expected in zip(net(images), (maps[0], maps[2]), strict=True):
            assert torch.equal(found, expected), kind.__name__
        assert net.feature_info.channels() == [64, 256]
        assert net.feature_info.reduction() == [4, 16]
    converted = models.convert(timm.create_model("resnet18", num_classes=5), **SMALL).eval()
    net = timm.models.FeatureGraphNet(converted, (3, 4))
    assert [y.shape[1:] for y in net(images)] == [(256, 4, 4), (512, 4, 4)]
    assert net.feature_info.reduction() == [16, 16]

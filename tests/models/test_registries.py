"""`convert` and `load_backbone` on the networks that torchvision and timm have.

`make registries` tries all of them, and prints the counts; here are some of each kind.
"""

from __future__ import annotations

import functools
import re
from collections import Counter

import pytest
import torch
from torch import nn

from tests._support import registries, torchvision_stub
from vt_fast.models import ResNet, convert, load_backbone

SMALL = {"num_tokens": 4, "token_channels": 64}
DEPTHS = (18, 34, 50, 101)
PARTS = 32


@pytest.fixture(autouse=True)
def libraries():
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    pytest.importorskip("timm")


# Networks of few parameters, with the stage that is replaced.
CONVERTED = [
    ("torchvision", "resnet18", "layer4"),
    ("torchvision", "mobilenet_v3_small", "features.11"),
    ("torchvision", "shufflenet_v2_x0_5", "stage4"),
    ("torchvision", "squeezenet1_1", "features.12"),
    ("torchvision", "regnet_y_400mf", "trunk_output.block4"),
    ("timm", "test_resnet", "layer4"),
    ("timm", "test_byobnet", "stages.3"),
    ("timm", "test_convnext", "stages.3"),
    ("timm", "test_efficientnet_gn", "blocks.4"),
    ("timm", "test_nfnet", "stages.3"),
    ("timm", "dla46_c", "level5"),
    ("timm", "edgenext_xx_small", "stages.3"),
    ("timm", "regnetx_002", "s4"),
]
REFUSED = [
    ("torchvision", "swin_t", "features.7", "takes no map"),
    ("torchvision", "inception_v3", "layer4", "no module of that name"),
    ("timm", "test_vit", "blocks.5", "takes no map"),
    ("timm", "test_mambaout", "stages.3", "takes no map"),
    ("timm", "test_resnet", "global_pool", "returns no map"),
    ("timm", "test_coatnet", "stages.1", "later layers need its size"),
    ("timm", "levit_128s", "stages.2", "takes no map"),
    ("timm", "coat_lite_tiny", "serial_blocks4", "is not called as a module"),
]


@pytest.mark.parametrize(("library", "name", "stage"), CONVERTED)
def test_convert(library, name, stage):
    model = registries.build(library, name)
    size = (3, 96, 96) if library == "torchvision" else registries.size(model)
    assert_converts(model, stage, torch.randn(2, *size))


def assert_converts(model, stage, images):
    """The network runs forward and backward with the new stage, and its other layers are as they were."""
    kept = dict(model.state_dict(keep_vars=True))
    before = {name: value.clone() for name, value in kept.items()}
    outputs = registries.first(model.eval()(images)).shape
    convert(model, stage, **SMALL)
    after = model.state_dict(keep_vars=True)
    inside = f"{stage}."
    assert {name for name in kept if not name.startswith(inside)} == {
        name for name in after if not name.startswith(inside)
    }
    for name, value in after.items():
        if not name.startswith(inside):
            assert value is kept[name], name
            assert value.is_meta or torch.equal(value, before[name]), name
    found = registries.first(model(images))
    assert found.shape[:2] == outputs[:2]
    registries.first(model.train()(images)).sum().backward()
    assert all(value.grad is not None for value in model.get_submodule(stage).parameters())


@pytest.mark.parametrize(("library", "name", "stage", "reason"), REFUSED)
def test_convert_refuses(library, name, stage, reason):
    assert_refuses(registries.build(library, name, "meta"), stage, reason)


def assert_refuses(model, stage, reason=None):
    """The error has one of the known reasons, and the network is as it was; the reason is returned."""
    before = dict(model.named_modules()), dict(model.named_parameters())
    with pytest.raises(ValueError, match="must") as caught:
        convert(model, stage, **SMALL)
    found = registries.reason(caught.value)
    assert reason in (None, found), caught.value
    for then, now in zip(before, (dict(model.named_modules()), dict(model.named_parameters())), strict=True):
        assert then.keys() == now.keys()
        assert all(each is now[name] for name, each in then.items())
    return found


def test_convert_refuses_where_later_layers_need_the_size():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2), nn.Flatten(), nn.Linear(8 * 28**2, 5))
    with pytest.raises(ValueError, match=r"take a map of 56 x 56, the size of the stage's input, .* 28 x 28"):
        convert(model, "1", **SMALL)
    assert isinstance(model[1], nn.Conv2d)
    model[3] = nn.Linear(8 * 56**2, 5)
    model[1].stride, model[1].kernel_size, model[1].padding = (1, 1), (1, 1), (0, 0)
    model[1].weight = nn.Parameter(torch.randn(8, 8, 1, 1))
    assert_converts(model, "1", torch.randn(2, 3, 224, 224))


def test_convert_leaves_hooks_and_caches_alone():
    """It tries a copy, so its hooks see nothing, and nothing without data stays in what it caches."""
    model, seen = registries.build("timm", "levit_128s").eval(), []
    model.register_forward_hook(lambda module, args, result: seen.append(result))
    with pytest.raises(ValueError, match="must take a map"):
        convert(model, "stages.2", **SMALL)
    assert not seen
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).isfinite().all()


# Networks whose layers have a ResNet's names, a depth, and what `load_backbone` says if it is not complete.
LOADED = [
    ("torchvision", "resnet18", {}, 18, None),
    ("torchvision", "resnet50", {}, 50, None),
    ("torchvision", "quantized_resnet18", {}, 18, None),
    ("torchvision", "resnet34", {}, 18, "layers of the checkpoint that the backbone lacks: layer1.2"),
    ("torchvision", "resnet18", {}, 34, "missing in the checkpoint: layer1.2"),
    (
        "torchvision",
        "resnet50",
        {"replace_stride_with_dilation": (False, True, False)},
        50,
        r"layer3 returns .* another stride or dilation",
    ),
    ("torchvision", "resnext50_32x4d", {}, 50, r"layer1.0.conv1.weight: \(128, 64, 1, 1\) in the checkpoint"),
    ("timm", "resnet18", {}, 18, None),
    ("timm", "resnet18", {"output_stride": 16}, 18, None),
    ("timm", "resnet18", {"output_stride": 8}, 18, "layer3 returns .* another stride or dilation"),
    ("timm", "resnet18", {"act_layer": "gelu"}, 18, "layer1 computes something else than the network's"),
    ("timm", "resnet18d", {}, 18, "layers of the checkpoint that the backbone lacks: conv1.0"),
    ("timm", "resnetblur18", {}, 18, "layer1 computes something else than the network's"),
    ("timm", "seresnet18", {}, 18, "layers of the checkpoint that the backbone lacks: layer1.0.se"),
    ("timm", "skresnet18", {}, 18, "layers of the checkpoint that the backbone lacks: layer1.0.conv1.paths"),
    ("timm", "ecaresnet26t", {}, 50, "layers of the checkpoint that the backbone lacks: conv1.0"),
    ("timm", "resnet50_gn", {}, 50, "missing in the checkpoint: bn1.running_mean"),
    ("timm", "resnetaa50", {}, 50, "layer1 computes something else than the network's"),
]


@pytest.mark.parametrize(("library", "name", "options", "depth", "message"), LOADED)
def test_load_backbone(library, name, options, depth, message):
    network = registries.randomised(registries.build(library, name, num_classes=3, **options))
    report = assert_loads(network, depth)
    assert report.complete == (message is None)
    assert message is None or re.search(message, str(report)), report


@pytest.mark.parametrize(
    ("name", "prefix", "complete"),
    [("fcn_resnet50", "backbone.", False), ("retinanet_resnet50_fpn", "backbone.body.", True)],
)
def test_load_backbone_from_a_part_of_a_network(name, prefix, complete):
    report = assert_loads(registries.randomised(registries.build("torchvision", name)), 50, prefix)
    assert report.complete == complete
    assert complete or "layer3 returns" in str(report)


def assert_loads(network, depth, prefix=""):
    """The report, which says `complete` if and only if the stages compute the same."""
    backbone = ResNet(depth, stages=3).double().eval()
    report = load_backbone(backbone, network, prefix=prefix or None)
    same = not report.missing and not report.mismatched
    if same:
        inside = network.get_submodule(prefix.removesuffix("."))
        same = all(
            one.shape == other.shape and (one - other).abs().max() <= 1e-10 * other.abs().max()
            for one, other in maps_of(backbone, inside)
        )
    assert report.complete == same, report
    assert report.complete or report.missing or report.mismatched or report.different
    return report


@torch.no_grad()
def maps_of(backbone, network):
    """Pairs of maps of the same stage."""
    images, theirs = torch.randn(1, 3, 65, 97, dtype=torch.float64), []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, args, result: theirs.append(result))
        for name in ("layer1", "layer2", "layer3")
    ]
    network(images)
    for handle in handles:
        handle.remove()
    return zip(backbone.features(images), theirs, strict=True)


@pytest.mark.registries
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_convert_whole_registry(library, part):
    counts = Counter()
    for name in registries.names(library)[part::PARTS]:
        counts[converted(library, name)] += 1
    print(f"convert {library} {part}: {dict(counts)}")


def converted(library, name):
    """What `convert` does with the likeliest of its stages that it accepts, or why it accepts none."""
    try:
        model = registries.build(library, name, "meta")
        images = torch.empty(2, *registries.size(model), device="meta")
        model(images)
    except Exception as error:  # of the library
        return f"does not run without data ({type(error).__name__})"
    reason = None
    for stage in registries.last_stages(model):
        try:
            assert_converts(model, stage, images)
        except ValueError as error:
            reason = reason or registries.reason(error)
        else:
            return "converted"
        assert_refuses(model, stage)
    return reason


@pytest.mark.registries
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_load_backbone_whole_registry(library, part):
    counts = Counter()
    for name in registries.names(library)[part::PARTS]:
        counts[loaded(library, name)] += 1
    print(f"load_backbone {library} {part}: {dict(counts)}")


def loaded(library, name):
    """What `load_backbone` says of a network for the backbone that fits it best."""
    try:
        given = {
            key: value.shape for key, value in registries.build(library, name, "meta").state_dict().items()
        }
    except NotImplementedError:  # it reads numbers when it is made
        given = {key: value.shape for key, value in registries.build(library, name).state_dict().items()}
    fits = {}
    for prefix in ("", "backbone.", "backbone.body."):
        for depth, wanted in shapes().items():
            fits[prefix, depth] = sum(given.get(prefix + key) == shape for key, shape in wanted.items())
    prefix, depth = max(fits, key=fits.get)
    if sum(map(torch.Size.numel, given.values())) > registries.MOST_PARAMETERS:
        return "too large"
    network = registries.randomised(registries.build(library, name))
    if fits[prefix, depth] < 10:
        with pytest.raises(ValueError, match="`checkpoint` must have parameters of the backbone"):
            load_backbone(ResNet(depth, stages=3), network)
        return "has no layers of a ResNet's names"
    report = assert_loads(network, depth, prefix)
    if report.complete:
        return "complete"
    return "other parameters" if report.missing or report.mismatched else "different"


@functools.cache
def shapes():
    with torch.device("meta"):
        found = {depth: ResNet(depth, stages=3).state_dict() for depth in DEPTHS}
    return {depth: {key: value.shape for key, value in each.items()} for depth, each in found.items()}

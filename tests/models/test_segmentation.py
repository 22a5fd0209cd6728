"""Segmentation networks: reference, sizes, layouts, dtypes, compilers, state and errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.export import Dim

from tests._support.segmentation_cases import (
    CLASSES,
    NETS,
    SMALL,
    TOKENS,
    C,
    SmallBackbone,
    group_norm,
    images,
    randomised,
)
from vt_fast.models import (
    FPN,
    VTFPN,
    FeaturePyramid,
    PanopticHead,
    ResNet,
    SegmentationNet,
    VTResNetFeatures,
    fpn,
    vt_fpn,
)
from vt_fast.nn import set_backend


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(name, dtype=torch.float64):
    return randomised(NETS[name](), dtype).eval()


def gradients(net, x):
    x = x.clone().requires_grad_()
    logits = net(x)
    logits.square().mean().backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    found |= {"x": x.grad, "logits": logits.detach()}
    net.zero_grad()
    return found


def test_equals_the_reference():
    net = made("VT-FPN").train()
    found = gradients(net, images())
    set_backend(net, "reference")
    for key, value in gradients(net, images()).items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")
        assert value.abs().max() > 1e-12, f"{key} is zero"


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(64, 32), (37, 29), (33, 64), (1, 1), (5, 90)])
def test_any_size(name, size):
    logits = made(name)(images(*size, batch=1))
    assert logits.shape == (1, CLASSES, *size)
    assert torch.isfinite(logits).all()


def test_sizes_are_rounded_up():
    net = vt_fpn(18, CLASSES, **SMALL, **TOKENS).eval()
    with torch.no_grad():
        found = net.features(torch.randn(1, 3, 97, 65))
    assert [tuple(each.shape) for each in found] == [
        (1, C, -(-97 // stride), -(-65 // stride)) for stride in net.strides
    ]
    assert net.strides == (4, 8, 16, 32)
    assert net.out_channels == C


def test_the_default_backbone():
    backbone = fpn(50, 2).backbone
    assert backbone.layer2[0].conv1.stride == (2, 2)
    assert backbone.layer2[0].conv2.stride == (1, 1)
    assert backbone.fc is None


def test_predict_takes_the_largest_logit_and_keeps_no_gradient():
    net, recorded = made("VT-FPN"), []
    net.head.register_forward_hook(lambda head, inputs, logits: recorded.append(logits.requires_grad))
    classes = net.predict(images())
    assert classes.dtype == torch.int64
    assert torch.equal(classes, net(images()).argmax(1))
    assert recorded == [False, True]


def test_features_by_name():
    backbone = SmallBackbone()
    pyramid = FeaturePyramid(backbone, VTFPN(backbone.channels, C, **TOKENS)).eval()
    x = images(dtype=torch.float32)
    named = pyramid(x)
    assert list(named) == ["0", "1", "2"]
    for one, two in zip(named.values(), pyramid.features(x), strict=True):
        assert torch.equal(one, two)
    assert pyramid.out_channels == C


@pytest.mark.parametrize("name", ["VT-FPN", "VT-FPN on ResNet"])
def test_masked_padding_reaches_the_neck(name):
    net = made(name)
    mask = torch.ones(2, 37, 29, dtype=torch.bool)
    torch.testing.assert_close(net(images(), mask), net(images()), rtol=0, atol=1e-10)
    mask[1, :, 16:] = False
    masked, plain = net(images(), mask), net(images())
    torch.testing.assert_close(masked[0], plain[0], rtol=0, atol=1e-10)
    assert (masked[1] - plain[1]).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["FPN", "VT-FPN"])
def test_channels_last(name):
    net = made(name)
    expected = net(images())
    net = net.to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in net.features(x))
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["FPN", "VT-FPN"])
def test_autocast(name):
    """Within twice the error of the paper as written under autocast."""
    exact = made(name)(images())
    net = made(name, torch.float32)
    x = images(dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        folded = net(x)
        set_backend(net, "reference")
        written = net(x)
    assert folded.dtype == torch.bfloat16
    error, plain = ((each.double() - exact).abs().max() for each in (folded, written))
    assert 0 < error <= 2 * plain + torch.finfo(torch.bfloat16).eps * exact.abs().max()


def test_trains_under_autocast():
    net = made("VT-FPN", torch.float32).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(images(dtype=torch.float32)).square().mean()
    loss.backward()
    assert all(torch.isfinite(each.grad).all() for each in net.parameters())


# Tracing takes seconds. The other neck is plain PyTorch.
def test_compiled():
    net = made("VT-FPN")
    expected = gradients(net, images())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for key, value in gradients(compiled, images()).items():
        torch.testing.assert_close(value, expected[key.replace("_orig_mod.", "")], rtol=0, atol=1e-10)


def test_exported_for_all_sizes():
    net = made("VT-FPN")
    sizes = {0: Dim("batch", min=2), 2: Dim("height", min=33), 3: Dim("width", min=33)}
    exported = torch.export.export(net, (images(50, 41),), dynamic_shapes=(sizes,)).module()
    for shape in [(50, 41, 2), (64, 37, 3)]:
        x = images(*shape[:2], batch=shape[2])
        torch.testing.assert_close(exported(x), net(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_state_through_safetensors(name, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    net, other = made(name), NETS[name]().double().eval()
    safetensors.save_model(net, str(tmp_path / "net.safetensors"))
    safetensors.load_model(other, str(tmp_path / "net.safetensors"))
    assert torch.equal(net(images()), other(images()))


def test_copies_are_independent():
    net = made("VT-FPN")
    other = copy.deepcopy(net)
    before = net(images())
    other.neck.tokenizers[0].filters.data.zero_()
    assert torch.equal(net(images()), before)
    assert not torch.equal(other(images()), before)


@pytest.mark.parametrize("kind", [FPN, VTFPN])
def test_synchronised_batch_norm(kind):
    backbone = SmallBackbone()
    options = TOKENS if kind is VTFPN else {}
    neck = kind(backbone.channels, C, norm_layer=torch.nn.BatchNorm2d, **options)
    net = SegmentationNet(
        backbone, neck, PanopticHead(CLASSES, C, levels=3, channels=8, norm_layer=torch.nn.BatchNorm2d)
    )
    net = randomised(net).eval()
    expected, names = net(images()), list(net.state_dict())
    count = sum(isinstance(part, torch.nn.BatchNorm2d) for part in net.modules())
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert list(converted.state_dict()) == names
    assert sum(isinstance(part, torch.nn.SyncBatchNorm) for part in converted.modules()) == count
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in converted.modules())
    torch.testing.assert_close(converted(images()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"`images` must be \(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), ValueError, r"`images` must be \(B, 3, H, W\), got \(1, 1, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), ValueError, "`images` must have no size of 0"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "`images` must be float16"),
        ([1], TypeError, "`images` must be a torch.Tensor, got list"),
    ],
)
def test_errors_of_the_images(x, error, message):
    with pytest.raises(error, match=message):
        NETS["VT-FPN"]()(x)


def test_errors_of_the_parts():
    with pytest.raises(ValueError, match=r"`neck` must have in_channels = \(6, 10, 14\), .* got \(4,\)"):
        SegmentationNet(SmallBackbone(), FPN((4,)), torch.nn.Identity())
    with pytest.raises(
        TypeError, match="`backbone` must have the attribute `channels`, got Identity without"
    ):
        vt_fpn(backbone=torch.nn.Identity())
    with pytest.raises(
        TypeError, match="`backbone` must have the attribute `features`, got VTResNetFeatures"
    ):
        vt_fpn(backbone=VTResNetFeatures(18))
    with pytest.raises(ValueError, match="`depth` must be one of"):
        vt_fpn(51)


def test_head_as_documented():
    """One convolution at the finest level, i with a resize each at level i, a sum, and a 1x1."""
    head = PanopticHead(CLASSES, 4, levels=3, channels=8, norm_layer=group_norm).double()
    assert [len(branch) for branch in head.branches] == [1, 1, 2]
    maps = [torch.randn(1, 4, *size, dtype=torch.float64) for size in ((12, 8), (6, 4), (3, 2))]

    def twice(x):
        return torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")

    coarse = twice(head.branches[2][1](twice(head.branches[2][0](maps[2]))))
    summed = head.branches[0][0](maps[0]) + twice(head.branches[1][0](maps[1])) + coarse
    torch.testing.assert_close(head(maps), head.classifier(summed))
    torch.testing.assert_close(head(maps, (24, 16)), twice(head(maps)))


def test_backbone_of_two_stages():
    net = vt_fpn(num_classes=2, backbone=ResNet(18, stages=2), **SMALL, **TOKENS)
    assert net.strides == (4, 8)
    assert [len(branch) for branch in net.head.branches] == [1, 1]

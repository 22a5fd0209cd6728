"""Models registered with timm, and that vt_fast does not import timm."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests._support import torchvision_stub
from vt_fast import models

NARROW = {"token_channels": 64, "num_tokens": 4}


@pytest.fixture
def timm():
    if not torchvision_stub.importable():
        pytest.skip("torchvision is not installed")
    found = pytest.importorskip("timm")
    models.register_with_timm()
    return found


def test_create_model(timm):
    model = timm.create_model("vt_resnet18", num_classes=10, drop_rate=0.2, drop_path_rate=0.1, **NARROW)
    assert isinstance(model, models.VTResNet)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert model.dropout.p == 0.2
    assert model.backbone.layer3[-1].drop_path.rate == 0.1
    assert model.num_classes == 10


def test_all_depths_are_known_and_registering_twice_is_silent(timm, recwarn):
    models.register_with_timm()
    assert timm.list_models("vt_resnet*") == ["vt_resnet18", "vt_resnet34", "vt_resnet50", "vt_resnet101"]
    assert not [warning for warning in recwarn if "vt_resnet" in str(warning.message)]


def test_timms_data_settings(timm):
    model = timm.create_model("vt_resnet18", **NARROW)
    settings = timm.data.resolve_data_config(model=model)
    assert settings["input_size"] == (3, 224, 224)
    assert settings["crop_pct"] == 0.875


def test_features_only(timm):
    backbone = timm.create_model("vt_resnet18", features_only=True, out_indices=(1, 3), **NARROW)
    maps = backbone(torch.zeros(1, 3, 64, 64))
    assert backbone.feature_info.channels() == [each.shape[1] for each in maps] == [128, 256]
    assert backbone.feature_info.reduction() == [64 // each.shape[2] for each in maps] == [8, 16]


def test_refused(timm):
    with pytest.raises(ValueError, match="`pretrained` must be False"):
        timm.create_model("vt_resnet18", pretrained=True)
    with pytest.raises(ValueError, match="`out_indices` must be None without `features_only`"):
        timm.create_model("vt_resnet18", out_indices=(1,))


@pytest.mark.parametrize("features_only", [False, True])
def test_a_file_of_another_network_is_refused(timm, features_only, tmp_path):
    torch.save({"stem.weight": torch.zeros(3)}, tmp_path / "other.pth")
    overlay = {"file": str(tmp_path / "other.pth")}
    error, message = (ValueError, "must name a file of") if features_only else (RuntimeError, "stem.weight")
    with pytest.raises(error, match=message):
        timm.create_model(
            "vt_resnet18",
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            features_only=features_only,
            **NARROW,
        )


def run(code):
    code = textwrap.dedent(code)
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), here])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_importing_models_imports_no_timm():
    done = run("""
        import sys, vt_fast.models
        assert not {"timm", "torchvision", "safetensors", "fvcore"} & set(sys.modules)
    """)
    assert done.returncode == 0, done.stderr


def test_registered_where_timm_was_imported_before(timm):
    done = run("""
        from tests._support import torchvision_stub
        torchvision_stub.importable()
        import timm
        assert not timm.is_model("vt_resnet18")
        import vt_fast.models
        assert timm.is_model("vt_resnet18")
    """)
    assert done.returncode == 0, done.stderr


def test_without_timm():
    done = run("""
        import sys
        sys.modules["timm"] = None
        import vt_fast.models
        try:
            vt_fast.models.register_with_timm()
        except ModuleNotFoundError as error:
            assert "pip install timm" in str(error)
        else:
            raise SystemExit("no error")
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_other_channels(timm, channels):
    images = torch.randn(2, channels, 64, 64)
    model = timm.create_model("vt_resnet18", in_chans=channels, num_classes=5, **NARROW)
    assert model(images).shape == (2, 5)
    assert model.default_cfg["input_size"] == (channels, 224, 224)
    maps = timm.create_model(
        "vt_resnet18", in_chans=channels, features_only=True, out_indices=(0, 1), **NARROW
    )
    assert [y.shape[1] for y in maps(images)] == [64, 128]
    assert not any(name.startswith(("stage", "backbone.layer3")) for name, _ in maps.named_parameters())


def test_pooling_and_a_new_classifier(timm):
    images = torch.randn(2, 3, 64, 64)
    model = timm.create_model("vt_resnet18", num_classes=0, global_pool="", **NARROW).eval()
    tokens = model(images)
    assert torch.equal(tokens, model.forward_features(images))
    model.reset_classifier(4, "avg")
    assert model(images).shape == (2, 4)
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens.mean(1))
    with pytest.raises(ValueError, match="`num_classes` must be 0"):
        model.reset_classifier(4, "")


def test_checkpointing_changes_nothing_but_memory(timm):
    torch.manual_seed(0)
    model = timm.create_model("vt_resnet18", num_classes=5, **NARROW)
    images, gradients, kept = torch.randn(2, 3, 64, 64), [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        count = 0

        def pack(value):
            nonlocal count
            count += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            loss = model(images).square().sum()
        kept.append(count)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert kept[1] < 0.7 * kept[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_options_and_methods_of_features_only(timm):
    """As timm's own: those of the classifier have no effect, and a checkpointed network keeps less."""
    options = {"drop_rate": 0.1, "global_pool": "avg", "drop_path_rate": 0.1}
    net = timm.create_model("vt_resnet18", features_only=True, **options, **NARROW)
    assert net.backbone.layer3[-1].drop_path.rate == 0.1
    net = timm.create_model("vt_resnet18", features_only=True, **NARROW)
    images, kept, found = torch.randn(2, 3, 64, 64), [], []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value, saved=saved: saved.append(value.numel()) or value, lambda value: value
        ):
            maps = net(images)
        kept.append(sum(saved))
        found.append(torch.autograd.grad(sum(y.square().sum() for y in maps), list(net.parameters())))
    assert kept[1] < 0.7 * kept[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_width_of_the_head(timm):
    model = timm.create_model("vt_resnet18", num_classes=5, **NARROW)
    assert model.head_hidden_size == model.num_features == 64


@pytest.mark.parametrize("coarse", [False, True])
def test_layer_decay_knows_every_parameter(timm, coarse):
    from timm.models import group_parameters

    model = timm.create_model("vt_resnet18", num_classes=5, **NARROW)
    groups = group_parameters(model, model.group_matcher(coarse))
    assert sum(map(len, groups.values())) == len(list(model.named_parameters()))
    assert set(groups[max(groups)]) == {"fc.weight", "fc.bias"}


def test_intermediates(timm):
    model = timm.create_model("vt_resnet18", num_classes=5, **NARROW).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens, maps = model.forward_intermediates(images, indices=2)
    assert torch.equal(tokens, model.forward_features(images))
    assert [y.shape[1:] for y in maps] == [(128, 8, 8), (256, 4, 4)]
    (first,) = model.forward_intermediates(images, indices=[0], intermediates_only=True, stop_early=True)
    assert first.shape == (2, 64, 16, 16)
    for count in (1, 3):
        assert len(model.forward_intermediates(images, indices=count, intermediates_only=True)) == count
    out_of_range = [{"indices": indices} for indices in ([3], 0, -1, 4, 6)]
    for options in (*out_of_range, {"norm": True}, {"output_fmt": "NLC"}, {"stop_early": True}):
        with pytest.raises(ValueError, match="must be"):
            model.forward_intermediates(images, **options)

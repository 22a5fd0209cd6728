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

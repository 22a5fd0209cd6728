"""The scripts that patch a library run on pictures, and the results stay the same."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests._support import hosts

SCRIPTS = {
    "patch_sam": ("segment_anything", ["--points", "2"]),
    "patch_timm": ("timm", []),
    "patch_perceiver": ("perceiver_pytorch", []),
    "patch_open_clip": ("open_clip", []),
}


@pytest.mark.hosts
@pytest.mark.parametrize("name", SCRIPTS)
def test_before_and_after(name, libraries, tmp_path, capsys):
    package, options = SCRIPTS[name]
    hosts.need(package)
    main = importlib.import_module(name).main
    assert main(["--tiny", "--repeats", "1", *options]) < 1e-4
    noise = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "odd.png")
    assert main([str(tmp_path / "odd.png"), "--tiny", "--repeats", "1", *options]) < 1e-4
    printed = capsys.readouterr().out
    assert printed.count("times as fast") == 2
    assert " yes" in printed


def test_weights_are_loaded(libraries, tmp_path, monkeypatch):
    hosts.need("timm")
    patching, patch_timm = (importlib.import_module(name) for name in ("patching", "patch_timm"))
    seen = []
    monkeypatch.setattr(patching, "compare", lambda model, call, repeats: seen.append(model) or 0.0)
    patch_timm.main(["--tiny"])
    state = {name: value + 1 for name, value in seen[0].state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    patch_timm.main(["--tiny", "--weights", str(tmp_path / "weights.pt")])
    assert all(torch.equal(value, state[name]) for name, value in seen[1].state_dict().items())

"""Compiled, exported and saved networks have the outputs and gradients of eager mode."""

from __future__ import annotations

import copy

import pytest
import torch

from tests._support.model_cases import CASES, assert_same, images, made, outputs, outputs_and_gradients

# Tracing takes seconds; tests/nn compiles every kind of stack.
COMPILED = [("classifier: default", False), ("classifier: v1", True), ("converted", False)]
EXPORTED = ("classifier: default", "classifier: v1", "features: default", "converted")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "last"), COMPILED)
def test_compiled(name, last):
    model = made(CASES[name])
    x = images(last=last)
    expected = outputs_and_gradients(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(outputs_and_gradients(compiled, x), expected)


@pytest.mark.parametrize("name", EXPORTED)
def test_exported(name):
    model = made(CASES[name]).eval()
    expected = outputs(model, images())
    exported = torch.export.export(copy.deepcopy(model), (images(),)).module()
    for each, other in zip(outputs(exported, images()), expected, strict=True):
        torch.testing.assert_close(each, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["classifier: default", "classifier: v1", "features: default"])
def test_saved_by_safetensors(name, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, other = made(CASES[name]), CASES[name]().double()
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    other.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
    for each, expected in zip(outputs(other, images()), outputs(model, images()), strict=True):
        assert torch.equal(each, expected)


def test_backend_is_no_part_of_the_state():
    model = CASES["classifier: default"]()
    before = model.state_dict().keys()
    model.backend = "reference"
    assert model.state_dict().keys() == before

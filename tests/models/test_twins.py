"""Outputs and gradients of every network and ablation equal those of the paper as written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests._support.model_cases import CASES, assert_same, images, made, outputs, outputs_and_gradients
from vt_fast.nn import VisualTransformer, set_backend
from vt_fast.testing import assert_as_accurate

# Biases that all tokens share: their gradient is zero if a BatchNorm follows.
SHARED_BIASES = (
    "tokenizer.value",
    "tokenizer.token",
    "projector.value",
    "transformer.value",
    "transformer.second",
)


def cancelled(model: nn.Module) -> set[str]:
    """Gradients that may be zero, because BatchNorm on the tokens subtracts what they share."""
    blocks = [
        name
        for name, part in model.named_modules()
        if isinstance(part, VisualTransformer) and isinstance(part.transformer.token_norm, nn.BatchNorm1d)
    ]
    return {f"d {name}.{layer}.bias" for name in blocks for layer in SHARED_BIASES}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, last):
    model = made(CASES[name])
    if last:
        model = model.to(memory_format=torch.channels_last)
    x = images(last=last)
    # In training mode, so that both use the statistics of this batch.
    folded = outputs_and_gradients(model, x)
    set_backend(model, "reference")
    written = outputs_and_gradients(model, x)
    assert_same(folded, written)
    missing = {"d x", *(f"d {key}" for key, _ in model.named_parameters())} - folded.keys()
    assert not missing, "parameters without gradient"
    zero = {key for key, value in folded.items() if value.abs().max() <= 1e-9}
    assert zero <= cancelled(model), "the case leaves a gradient at zero"


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("features")])
def test_maps_keep_the_memory_format(name):
    model = made(CASES[name]).to(memory_format=torch.channels_last)
    for backend in (None, "reference"):
        set_backend(model, backend)
        for each in model(images(last=True)):
            assert each.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["classifier: default", "classifier: v1", "features: default", "converted"])
def test_autocast(name):
    """Under bfloat16 autocast the network is about as accurate as the paper as written is."""
    model = made(CASES[name]).eval()
    exact = outputs(model, images())
    single = model.float()

    def under_autocast():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return outputs(single, images(torch.float32))

    ours = under_autocast()
    set_backend(single, "reference")
    plain = under_autocast()
    for each, truth, other in zip(ours, exact, plain, strict=True):
        assert each.dtype == torch.bfloat16
        assert_as_accurate(each, truth, other, name)


def test_gradients_under_autocast_are_finite_and_float32():
    model = made(CASES["classifier: default"], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images(torch.float32)).float().square().sum()
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", ["classifier: default", "features: default", "converted"])
def test_synchronised_batch_norm(name):
    """torch's conversion finds every BatchNorm and changes no result with one process."""
    model = made(CASES[name])
    expected = outputs(model.eval(), images())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    kinds = {type(part) for part in converted.modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    for each, other in zip(outputs(converted, images()), expected, strict=True):
        torch.testing.assert_close(each, other, rtol=0, atol=1e-12)

"""Modules on a GPU: results and all gradients, against the paper as it is written."""

import pytest
import torch

from tests._support import devices
from tests._support.nn_cases import CASES, feature_map, incoming, made, run
from vt_fast import nn
from vt_fast.testing import allowed_error

NAMES = [name for name in CASES if name.startswith(("module", "stack"))]
# Sums over some 60 pixels, 36 channels and as many hidden ones, through the layers of three modules.
TERMS = 1000


def solve(name, form, dtype, backend):
    """Outputs, and gradients of the map and of all parameters, by name."""
    with torch.device("cpu"):  # the same numbers as there
        module, x = made(CASES[name], dtype=dtype), feature_map(form, dtype=dtype)
        tokens = incoming(module, dtype=dtype)
    module, x, tokens = module.to(devices.GPU), leaf(x), leaf(tokens)
    nn.set_backend(module, backend)
    outputs = run(module, x, tokens)
    generator = torch.Generator().manual_seed(4)
    arriving = [
        torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu").to(output)
        for output in outputs
    ]
    leaves = {"x": x} | dict(module.named_parameters())
    grads = torch.autograd.grad(outputs, list(leaves.values()), arriving, allow_unused=True)
    answer = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    return answer | {f"d {key}": grad for key, grad in zip(leaves, grads, strict=True) if grad is not None}


def leaf(value):
    return value.detach().to(devices.GPU).requires_grad_()


@pytest.mark.one_in(5)
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name, form, monkeypatch):
    # 1x1 convolutions run in cuDNN, in TF32 by default; the reference has products instead.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = solve(name, form, torch.float32, None)
    plain = solve(name, form, torch.float32, "reference")
    exact = solve(name, form, torch.float64, "reference")
    assert found.keys() == exact.keys()
    # Folded, what is small comes from sums of what is not: the yardstick is the largest of them all.
    reached = max((plain[key] - value).abs().max().item() for key, value in exact.items())
    largest = max(value.abs().max().item() for value in exact.values())
    allowed = allowed_error(reached, largest, torch.float32, lse=10.0, terms=TERMS)
    for key, value in exact.items():
        assert found[key].device.type == devices.GPU
        assert (found[key] - value).abs().max() <= allowed, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_under_autocast(dtype):
    """What comes out is in the dtype of autocast, and gradients are in that of the parameters."""
    module, x = nn.VisualTransformer(32, num_tokens=4), torch.randn(2, 32, 8, 8, requires_grad=True)
    with torch.autocast(devices.GPU, dtype=dtype):
        y, tokens = module(x)
    assert y.dtype == dtype
    (y.float().square().mean() + tokens.float().square().mean()).backward()
    assert x.grad.dtype == torch.float32
    for name, parameter in module.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name

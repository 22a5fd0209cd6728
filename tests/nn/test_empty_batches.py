"""A batch of no samples through every module: empty results, and gradients of 0."""

import pytest
import torch

from tests._support.nn_cases import CASES, FORMS, feature_map, incoming, made, needs_grid, run
from tests._support.nn_cases import outputs_and_gradients as solved
from vt_fast import nn


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name, backend):
    module = made(CASES[name])
    nn.set_backend(module, backend)
    for form in FORMS[:1] if name.startswith("relation") else FORMS:
        if form == "rows" and needs_grid(name):
            continue
        full = run(module, feature_map(form), incoming(module))
        found = solved(module, feature_map(form, batch=0), incoming(module, batch=0))
        for index, result in enumerate(full):
            assert found[f"output {index}"].shape == (0, *result.shape[1:])
        for key, parameter in module.named_parameters():
            assert torch.equal(found[f"d {key}"], torch.zeros_like(parameter)), key


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("tokenizer", "projector"))])
def test_attention_maps(name, backend):
    module = made(CASES[name])
    nn.set_backend(module, backend)
    x, tokens = feature_map("contiguous"), incoming(module)
    full = module.attention_maps(x, tokens)
    assert module.attention_maps(x[:0], tokens[:0]).shape == (0, *full.shape[1:])

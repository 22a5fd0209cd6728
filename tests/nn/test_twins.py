"""Every module, folded and fused, equals the paper as it is written: outputs and all gradients."""

from __future__ import annotations

import pytest
import torch

from tests._support.nn_cases import (
    CASES,
    FORMS,
    assert_same,
    feature_map,
    incoming,
    made,
    needs_grid,
    outputs_and_gradients,
    run,
)
from vt_fast import nn

COMBINATIONS = [
    (name, form)
    for name in CASES
    for form in (FORMS[:1] if name.startswith("relation") else FORMS)
    if not (form == "rows" and needs_grid(name))
]


@pytest.mark.parametrize(("name", "form"), COMBINATIONS)
def test_equals_the_reference(name, form):
    module = made(CASES[name])
    x, tokens = feature_map(form), incoming(module)
    folded = outputs_and_gradients(module, x, tokens)
    nn.set_backend(module, "reference")
    written = outputs_and_gradients(module, x, tokens)
    assert_same(folded, written)
    source = "d tokens" if name.startswith("relation") else "d x"
    untouched = {source, *(f"d {key}" for key, _ in module.named_parameters())} - folded.keys()
    assert not untouched, "parameters without gradient"
    assert all(grad.abs().max() > 1e-8 for grad in folded.values()), "the case leaves a gradient at zero"


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith(("projector", "module", "stack"))]
)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_the_map_comes_back_in_the_form_it_came(name, backend):
    module = made(CASES[name])
    nn.set_backend(module, backend)
    for form in FORMS:
        if form == "rows" and needs_grid(name):
            continue
        x, tokens = feature_map(form), incoming(module)
        results = module(x) if name.startswith("stack") else module(x, tokens)
        y = results if isinstance(results, torch.Tensor) else results[0]
        if y is not None:
            assert y.dim() == x.dim()
            assert y.stride() == torch.empty(y.shape, memory_format=memory_format(x)).stride()


def memory_format(x):
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@pytest.mark.parametrize(
    "name", [name for name in CASES if "clustering" not in name and "pooling" not in name]
)
def test_the_three_forms_agree(name):
    forms = FORMS[:2] if name.startswith("relation") or needs_grid(name) else FORMS
    module = made(CASES[name])
    results = [run_as_rows(module, form) for form in forms]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def run_as_rows(module, form):
    results = run(module, feature_map(form), incoming(module))
    return [result.flatten(2).transpose(1, 2) if result.dim() == 4 else result for result in results]

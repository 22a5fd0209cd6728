"""Attention maps equal the paper's, and no module keeps one."""

from __future__ import annotations

import gc

import pytest
import torch

from tests._support.nn_cases import (
    FORMS,
    MODULES,
    PROJECTORS,
    STACKS,
    TOKENIZERS,
    B,
    H,
    L,
    W,
    feature_map,
    incoming,
    made,
    needs_grid,
)
from vt_fast import nn


def maps_of(module, x, tokens):
    with torch.no_grad():
        return module.attention_maps(x, tokens)


def check(module, form, num_heads, sums_over):
    """Shape, sums, and equality with backend="reference"."""
    x, tokens = feature_map(form), incoming(module)
    maps = maps_of(module, x, tokens)
    assert maps.shape[-1 if form == "rows" else -2 :] == ((H * W,) if form == "rows" else (H, W))
    rest = maps.flatten(-1 if form == "rows" else -2)
    assert rest.shape[:-1] == num_heads
    assert torch.all(rest >= 0)
    total = rest.sum(sums_over)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-10)
    nn.set_backend(module, "reference")
    torch.testing.assert_close(maps_of(module, x, tokens), maps, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in TOKENIZERS for form in FORMS if not (form == "rows" and needs_grid(name))],
)
def test_of_a_tokenizer(name, form):
    module = made(TOKENIZERS[name])
    if isinstance(module, nn.DynamicTokenizer):
        check(module, form, (B, module.num_heads, L // 2), -1)
    else:
        check(module, form, (B, module.num_tokens), -1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROJECTORS)
def test_of_a_projector(name, form):
    module = made(PROJECTORS[name])
    check(module, form, (B, module.num_heads, L), 2)


def test_they_are_the_weights_that_make_the_tokens():
    x = feature_map("contiguous")
    for name in ("filter", "recurrent key", "clustering", "pooling"):
        module = made(TOKENIZERS[name])
        tokens = incoming(module)
        maps = module.attention_maps(x, tokens)
        pooled = torch.einsum("blhw,bchw->blc", maps, x)
        torch.testing.assert_close(module(x, tokens), module.finish(pooled), rtol=0, atol=1e-10)


def test_they_are_the_weights_that_change_the_map():
    x, module = feature_map("contiguous"), made(PROJECTORS["shortcut"])
    tokens = incoming(module)
    values = module.value(tokens).unflatten(2, (module.num_heads, -1))
    change = torch.einsum("bhlyx,blhd->bhdyx", module.attention_maps(x, tokens), values).flatten(1, 2)
    torch.testing.assert_close(module(x, tokens), module.residual(x) + change, rtol=0, atol=1e-10)


def test_of_a_token_transformer():
    module = made(lambda: nn.TokenTransformer(20, width=8, num_heads=4, token_norm="layer"))
    tokens = incoming(module)
    maps = module.attention_maps(tokens)
    assert maps.shape == (B, 4, L, L)
    torch.testing.assert_close(maps.sum(-1), torch.ones(B, 4, L, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODULES)
def test_of_a_module(name):
    module, x = made(MODULES[name]), feature_map("contiguous")
    tokens = incoming(module)
    if module.tokenizer is None:
        with pytest.raises(ValueError, match="`tokenizer` must not be None where attention maps are wanted"):
            module.attention_maps(x, tokens)
    else:
        assert torch.equal(module.attention_maps(x, tokens), module.tokenizer.attention_maps(x, tokens))


@pytest.mark.parametrize("name", ["default", "tokens only", "paper's counts", "pooling", "v1, several heads"])
def test_of_a_stack(name):
    module, x = made(STACKS[name]), feature_map("contiguous")
    maps = module.attention_maps(x)
    assert len(maps) == len(module)
    tokens = None
    for found, block in zip(maps, module, strict=True):
        torch.testing.assert_close(found, block.attention_maps(x, tokens), rtol=0, atol=1e-10)
        y, tokens = block(x, tokens)
        x = x if y is None else y


def test_nothing_is_kept_on_the_modules():
    """After a forward pass and after the maps were asked for, the modules hold what they held before."""
    module, x = made(STACKS["default"]), feature_map("contiguous").detach()

    def tensors():
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    def attributes():
        return {name: sorted(vars(part)) for name, part in module.named_modules()}

    with torch.no_grad():
        module(x), module.attention_maps(x)
        held, count = attributes(), tensors()
        module(x), module.attention_maps(x)
    assert attributes() == held
    assert tensors() <= count  # others may have gone meanwhile


@pytest.mark.parametrize(
    "name", [name for name in TOKENIZERS if "pooling" not in name and "clustering" not in name]
)
def test_masked_pixels_have_no_weight(name):
    """The maps are those of the pixels that are left; a sample without any has weights of 0."""
    module = made(TOKENIZERS[name])
    x, tokens = feature_map("contiguous"), incoming(module)
    mask = torch.ones(B, H, W, dtype=torch.bool)
    mask[0, :, W // 2 :] = False
    mask[1:] = False
    with torch.no_grad():
        maps = module.attention_maps(x, tokens, mask=mask)
        left = module.attention_maps(x[:1, :, :, : W // 2], tokens[:1])
    torch.testing.assert_close(maps[:1, ..., : W // 2], left, rtol=0, atol=1e-10)
    assert not maps[0, ..., W // 2 :].any()
    assert not maps[1:].any()


@pytest.mark.parametrize("name", ["pooling", "clustering"])
def test_tokenizers_without_masks_refuse_one(name):
    module = {"pooling": nn.PoolingTokenizer, "clustering": nn.ClusteringTokenizer}[name](8, 4)
    with pytest.raises(ValueError, match="`mask` must be None with a"):
        module.attention_maps(torch.randn(1, 8, 6, 6), mask=torch.ones(1, 6, 6, dtype=torch.bool))

"""The necks: folded equals the paper as written, and both equal their equations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests._support.segmentation_cases import (
    CT,
    IN_CHANNELS,
    NECKS,
    SIZES,
    C,
    L,
    levels,
    neck,
    plain_neck,
    randomised,
)
from vt_fast.models import FPN, VTFPN
from vt_fast.nn import LinearPositionCode


def outputs_and_gradients(module, maps):
    outputs = module(maps)
    generator = torch.Generator().manual_seed(4)
    total = sum(
        (each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum() for each in outputs
    )
    leaves = [*maps, *module.parameters()]
    names = [*(f"d maps[{index}]" for index in range(len(maps))), *dict(module.named_parameters())]
    gradients = torch.autograd.grad(total, leaves)
    return dict(enumerate(outputs)) | dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize("name", NECKS)
def test_equals_the_reference(name):
    module, maps = randomised(NECKS[name]()), levels()
    folded = outputs_and_gradients(module, maps)
    module.backend = "reference"
    written = outputs_and_gradients(module, maps)
    assert folded.keys() == written.keys()
    for key, value in written.items():
        torch.testing.assert_close(folded[key], value, rtol=0, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")
        assert value.abs().max() > 1e-8, f"{key} is zero"
    assert [tuple(folded[index].shape) for index in range(3)] == [(2, C, *size) for size in SIZES]


def test_equals_the_equations():
    """The paper's equations by hand, with explicit softmaxes."""
    module, maps = randomised(neck(token_norm=None)), levels()
    lateral = [
        torch.einsum("oc,bchw->bhwo", block[0].weight[:, :, 0, 0], x).flatten(1, 2) + block[0].bias
        for block, x in zip(module.inner_blocks, maps, strict=True)
    ]
    tokens = []
    for tokenizer, y in zip(module.tokenizers, lateral, strict=True):
        weights = (y @ tokenizer.filters.T / C**0.5).softmax(1)
        tokens.append(weights.mT @ y @ tokenizer.token.weight.T + tokenizer.token.bias)
    met = module.transformer(torch.cat(tokens, 1))
    assert met.shape == (2, 3 * L, CT)
    for index, (projector, y, out) in enumerate(zip(module.projectors, lateral, module(maps), strict=True)):
        own = met[:, index * L : (index + 1) * L]
        query = torch.block_diag(*projector.query.weight.split(C // 4))
        logits = (y @ query.T + projector.query.bias) @ (own @ projector.key.weight.T).mT / C**0.5
        added = logits.softmax(2) @ (own @ projector.value.weight.T + projector.value.bias)
        torch.testing.assert_close(out.flatten(2).mT, y + added, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("relation", "interact"), [("transformer", True), ("graph", True), ("none", False)])
def test_levels_interact_only_through_tokens(relation, interact):
    module, maps = randomised(neck(relation=relation)), levels()
    with torch.no_grad():
        before = module(maps)
        after = module([maps[0], maps[1], maps[2] + 1])
    assert not torch.equal(before[2], after[2])
    assert torch.equal(before[0], after[0]) != interact


def test_initialised_as_its_laterals():
    module, maps = neck().double(), levels()
    for out, lateral in zip(module(maps), module.laterals(maps), strict=True):
        torch.testing.assert_close(out, lateral, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokenizer", ["filter", "static"])
def test_masked_padding_changes_nothing(tokenizer):
    """Padded images give the same result inside their borders as without padding."""
    module = randomised(neck(tokenizer=tokenizer))
    alone = [each[:1] for each in levels()]
    generator = torch.Generator().manual_seed(5)
    padded, strides = [], (4, 8, 16)
    for x, stride in zip(alone, strides, strict=True):
        wide = torch.randn(1, x.shape[1], 80 // stride, 64 // stride, generator=generator, dtype=x.dtype)
        wide[..., : x.shape[2], : x.shape[3]] = x.detach()
        padded.append(wide)
    mask = torch.zeros(1, 80, 64, dtype=torch.bool)
    mask[:, :50, :34] = True  # which is 13 x 9, 7 x 5 and 4 x 3 pixels, rounded up
    for out, expected in zip(module(padded, mask), module(alone), strict=True):
        torch.testing.assert_close(
            out[..., : expected.shape[2], : expected.shape[3]], expected, rtol=0, atol=1e-10
        )


def test_attention_maps_sum_to_one():
    for found, size in zip(neck().double().attention_maps(levels()), SIZES, strict=True):
        assert found.shape == (2, L, *size)
        torch.testing.assert_close(found.sum((2, 3)), torch.ones(2, L, dtype=torch.float64))


@pytest.mark.parametrize("tokenizer", ["filter", "static", "pooling", "clustering"])
def test_attention_maps_take_forwards_mask(tokenizer):
    module, maps = neck(tokenizer=tokenizer).double(), levels()
    mask = torch.ones(2, 52, 36, dtype=torch.bool)
    mask[1, :, 20:] = False
    if tokenizer in ("pooling", "clustering"):
        for call in (module, module.attention_maps):
            with pytest.raises(ValueError, match="`mask` must be None with a"):
                call(maps, mask)
        return
    plain = module.attention_maps(maps)
    for found, whole in zip(module.attention_maps(maps, mask), plain, strict=True):
        torch.testing.assert_close(found[0], whole[0], rtol=0, atol=1e-12)
        left = -(-found.shape[3] * 20 // 36)
        assert not found[1, ..., left:].any()
        torch.testing.assert_close(found.sum((2, 3)), torch.ones(2, L, dtype=torch.float64))
    with pytest.raises(TypeError, match="`mask` must be a tensor of bools"):
        module.attention_maps(maps, mask.float())


def test_backend_of_all_members():
    module = neck(backend="reference")
    assert module.backend == "reference"
    assert {tokenizer.backend for tokenizer in module.tokenizers} == {"reference"}
    module.backend = "torch"
    assert {projector.backend for projector in module.projectors} == {"torch"}


def test_fpn_equals_its_equations():
    module, maps = randomised(plain_neck()), levels()
    top = F.conv2d(maps[2], module.inner_blocks[2][0].weight, module.inner_blocks[2][0].bias)
    middle = F.conv2d(maps[1], module.inner_blocks[1][0].weight, module.inner_blocks[1][0].bias)
    # From 4 x 3 to 7 x 5 pixels: each covers two per side, the last ones one.
    middle = middle + top.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :7, :5]
    found = module(maps)
    for out, summed, block in zip(found[1:], (middle, top), module.layer_blocks[1:], strict=True):
        expected = F.conv2d(summed, block[0].weight, block[0].bias, padding=1)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert [tuple(each.shape) for each in found] == [(2, C, *size) for size in SIZES]


def test_laterals_have_the_same_names():
    plain, ours = plain_neck().state_dict(), neck().state_dict()
    names = [name for name in plain if name.startswith("inner_blocks")]
    assert names == [name for name in ours if name.startswith("inner_blocks")]
    assert plain.keys() - set(names) == {
        f"layer_blocks.{index}.0.{name}" for index in range(3) for name in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", [FPN, VTFPN])
def test_norms_replace_biases(kind):
    module = kind(IN_CHANNELS, norm_layer=torch.nn.BatchNorm2d)
    convolutions = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == (6 if kind is FPN else 3)
    assert all(part.bias is None for part in convolutions)


def test_each_level_has_a_position_code_of_its_own():
    own = LinearPositionCode(5, 3)
    for position in ("linear", own):
        codes = [tokenizer.position for tokenizer in neck(position=position).tokenizers]
        assert len({id(part.weight) for part in (own, *codes)}) == 4
        assert {type(part) for part in codes} == {LinearPositionCode}
    with pytest.raises(TypeError, match="`position` must be a str, a PositionCode or None, got function"):
        neck(position=lambda: own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tokenizer": "recurrent"},
            '`tokenizer` must be one of "filter", "clustering", "pooling", "static", got',
        ),
        ({"relation": "mean"}, '`relation` must be one of "transformer", "graph", "none", got'),
        ({"num_tokens": 0}, "`num_tokens` must be at least 1, got 0"),
        ({"query_groups": 3}, "`groups` must divide in_features = 16, got 3"),
        ({"relation": "graph", "num_token_heads": 2}, "`num_token_heads`, `token_groups` and `variant`"),
        ({"backend": "fast"}, '`backend` must be None or one of "reference"'),
    ],
)
def test_errors_of_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        neck(**options)


@pytest.mark.parametrize("kind", [FPN, VTFPN])
def test_errors_of_the_levels(kind):
    with pytest.raises(ValueError, match="`in_channels` must have one number for each map, got none"):
        kind(())
    with pytest.raises(ValueError, match=r"`in_channels\[1\]` must be at least 1, got 0"):
        kind((4, 0))


@pytest.mark.parametrize("make", [plain_neck, neck])
def test_errors_of_the_maps(make):
    module, maps = make().double(), levels()
    with pytest.raises(TypeError, match="`maps` must be a list or tuple of tensors, got Tensor"):
        module(maps[0])
    with pytest.raises(ValueError, match="`maps` must be 3 feature maps, got 2"):
        module(maps[:2])
    with pytest.raises(ValueError, match=r"`maps\[1\]` must be \(B, C, H, W\) with B = 2 and C = 10, got"):
        module([maps[0], maps[0], maps[2]])
    with pytest.raises(ValueError, match=r"`maps\[1\]` must be .* got \(1, 10, 7, 5\)"):
        module([maps[0], maps[1][:1], maps[2]])
    with pytest.raises(TypeError, match=r"`maps\[2\]` must be float16"):
        module([maps[0], maps[1], maps[2].long()])


def test_errors_of_the_mask():
    module, maps = neck().double(), levels()
    with pytest.raises(TypeError, match=r"`mask` must be a tensor of bools, got torch\.float32"):
        module(maps, torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match=r"`mask` must be \(B, H, W\) with B = 2, got \(1, 8, 8\)"):
        module(maps, torch.ones(1, 8, 8, dtype=torch.bool))
    module.backend = "reference"
    with pytest.raises(ValueError, match='`mask` must be None with backend="reference"'):
        module(maps, torch.ones(2, 8, 8, dtype=torch.bool))

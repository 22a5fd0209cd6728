"""The op family's switches that the CUDA kernels take, and the refusal of the others."""

import itertools

import pytest
import torch

from tests._support import cuda_emulator
from tests._support.emulated_cases import DTYPES, LAYOUTS, check, conditions, pooling, spreading
from tests._support.family import assert_sums_are_not_read
from tests._support.judging import short
from tests._support.pairs import pairs
from tests._support.problems import Problem
from vt_fast import functional

SIZES = {"channels": 48, "height": 5, "width": 7}


@pytest.mark.parametrize(
    ("op", "keys", "values", "option", "shared", "layout", "dtype"),
    pairs(
        ["project", "project_tokenize"],
        ["blocks", "full"],
        ["summed", "blocks"],
        ["token_bias", "residual", "no map"],
        [(), ("shared",)],
        LAYOUTS,
        DTYPES,
    ),
    ids=short,
)
def test_heads_of_project_by_shape(op, keys, values, option, shared, layout, dtype, request):
    options = () if option == "no map" and op == "project" else (option,)
    found = spreading(op, keys, values, "tokens", ("num_heads", *options, *shared), layout, **SIZES)
    check(found, dtype, **conditions(len(request.node.name)))


@pytest.mark.parametrize(
    ("normalize", "keys", "values", "shared", "layout", "dtype"),
    pairs(["exp", None], ["blocks", "full"], ["summed", "blocks"], [(), ("shared",)], LAYOUTS, DTYPES),
    ids=short,
)
def test_other_weights_of_project(normalize, keys, values, shared, layout, dtype, request):
    found = spreading(
        "project", keys, values, normalize, ("num_heads", "token_bias", *shared), layout, **SIZES
    )
    if normalize == "exp" and dtype == torch.float16:
        with cuda_emulator.emulated(), pytest.raises(RuntimeError, match='`normalize="exp"` in float16'):
            found.solve(dtype)
        return
    check(found, dtype, any_numbers=True, **conditions(len(request.node.name)))


@pytest.mark.parametrize(
    ("weights", "option", "shared", "layout", "dtype"),
    pairs(
        list(itertools.product(["tokens", None], ["one", "blocks", "full"])),
        ["mask", "pixel_bias", "token_bias", "shared bias"],
        [(), ("shared",)],
        LAYOUTS,
        DTYPES,
    ),
    ids=short,
)
def test_pooling_without_a_softmax_over_pixels(weights, option, shared, layout, dtype, request):
    normalize, heads = weights
    found = pooling(heads, normalize, (option, *shared), layout, **SIZES, tokens=6)
    check(found, dtype, any_numbers=True, **conditions(len(request.node.name)))


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("normalize", ["tokens", None])
def test_the_backward_of_sums_does_not_read_tokens_and_mass(normalize, dtype):
    with cuda_emulator.emulated():
        assert_sums_are_not_read(normalize, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("kind", ["project", "tokenize"])
def test_many_parts_of_a_sample(kind, dtype):
    sizes = {"channels": 32, "height": 33, "width": 40, "batch": 1}
    if kind == "project":
        options = ("num_heads", "token_bias")
        found = spreading("project", "blocks", "summed", "tokens", options, "bnc", **sizes)
    else:
        found = pooling("blocks", "tokens", ("token_bias",), "bnc", tokens=6, **sizes)
    check(found, dtype, any_numbers=True, seed=5, clusters=40)


@pytest.mark.parametrize("rows", [1, 8, 9, 16, 17, 32, 33, 64])
def test_numbers_of_rows(rows):
    options = ("token_bias",) if rows > 1 else ()
    check(pooling("one", "tokens", options, "nchw", **SIZES, tokens=rows), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_masked_pixels_may_hold_nan(dtype):
    clean = pooling("one", "tokens", ("mask", "token_bias"), "bnc", **SIZES, tokens=6)
    clean.operands["mask"][0] = False
    dirty = Problem("tokenize", dict(clean.operands), clean.options)
    hidden = ~clean.operands["mask"][..., None]
    clean.operands["x"] = clean.operands["x"].masked_fill(hidden, 0)
    dirty.operands["x"] = dirty.operands["x"].masked_fill(hidden, torch.nan)
    with cuda_emulator.emulated(seed=3):
        expected, found = clean.solve(dtype), dirty.solve(dtype)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    assert not found["result 0"][0].any()
    assert not found["result 1"][0].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(("clusters", "pixels"), [(1, 70), (8, 700)], ids=["whole samples", "parts"])
def test_removed_rows(clusters, pixels, dtype):
    """They may hold NaN. Neither an infinite pixel nor a gradient of NaN, as of T / mass, reaches them."""
    x, queries = torch.randn(2, pixels, 32).to(dtype).requires_grad_(), torch.randn(4, 32).to(dtype)
    queries[1] = torch.nan
    bias = torch.tensor([0.0, -torch.inf, 1.0, 0.0])
    with cuda_emulator.emulated(clusters=clusters):
        tokens, mass = functional.tokenize(
            x, queries, token_bias=bias, normalize="tokens", scale=0.1, return_stats=True
        )
        (tokens / mass[..., None].to(dtype)).nan_to_num().sum().backward()
        assert x.grad.isfinite().all()
        dirty = x.detach().clone()
        dirty[0, 3, 5] = torch.inf
        tokens = functional.tokenize(dirty, queries, token_bias=bias, normalize="tokens", scale=0.1)
    assert not tokens[:, 1].any()


SWITCHES = {
    "`values`": {"values": torch.randn(2, 9, 16)},
    "`scores`": {"scores": torch.randn(2, 4, 9)},
    "`token_bias`": {"token_bias": torch.randn(4)},
    "`layer_norm_eps`": {"layer_norm_eps": 1e-5},
}


@pytest.mark.skipif(cuda_emulator.REAL, reason="the public ops are tested")
@pytest.mark.parametrize("name", SWITCHES)
def test_what_tokenize_does_not_take(name):
    with cuda_emulator.emulated(), pytest.raises(RuntimeError, match=f"it does not take {name}"):
        functional.tokenize(torch.randn(2, 9, 16), torch.randn(4, 16), **SWITCHES[name])

"""What softmax must keep to: any scores, weights that sum to 1, and operands that samples share or do not."""

import itertools

import pytest
import torch

import vt_fast
from tests._support import cuda_emulator
from tests._support.emulated_cases import DTYPES, LAYOUTS, check, conditions, problem
from tests._support.judging import round_operands, short
from tests._support.pairs import pairs
from tests._support.problems import OPS, Problem


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_scores_far_apart(op, falling, dtype):
    """Scores that exp would not survive, whose maximum is in the first tile of a sample, or in the last."""
    found = problem(
        op, ("extra_values",) if op == "tokenize" else ("residual",), channels=32, height=7, width=11
    )
    ramp = torch.linspace(300, -300, 77).div(8).round().mul(8)
    of_map = "x" if op != "project_tokenize" else "residual"
    found.operands[of_map][..., 0] = ramp if falling else ramp.flip(0)
    for name in {"queries", "keys"} & found.operands.keys():
        found.operands[name][..., 0] = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.25])[
            : found.operands[name].shape[-2]
        ]
    for index in range(3):
        check(Problem(op, dict(found.operands), found.options), dtype, **conditions(index))


@pytest.mark.parametrize(("layout", "dtype"), [*itertools.product(LAYOUTS, DTYPES)], ids=short)
def test_a_constant_map_gives_that_constant(layout, dtype):
    found = problem("tokenize", ("pixel_bias",), layout, channels=48, height=5, width=7)
    found.operands["x"] = torch.ones_like(found.operands["x"])
    round_operands(found, dtype)
    for index in range(3):
        with cuda_emulator.emulated(**conditions(index)):
            tokens = found.solve(dtype)["result 0"]
        assert (tokens.float() - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    ("op", "option"),
    [
        ("tokenize", "extra_values"),
        ("tokenize", "num_heads"),
        ("project", "token_bias"),
        ("project_tokenize", "residual"),
    ],
)
def test_many_parts_of_a_sample(op, option, dtype):
    """Forty blocks share a sample, and the maximum grows from each to the next, or falls."""
    found = problem(op, (option,), channels=16, height=33, width=40, batch=1)
    of_map = "residual" if op == "project_tokenize" else "x"
    found.operands[of_map][..., 0] = torch.linspace(-40, 40, 33 * 40).div(0.25).round().mul(0.25)
    for name in {"queries", "keys"} & found.operands.keys():
        rows = found.operands[name].shape[-2]
        found.operands[name][..., 0] = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.25]).repeat(2)[:rows]
    check(found, dtype, seed=5, clusters=40)


@pytest.mark.parametrize("clusters", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
def test_lse_is_of_weights_that_are_not_rounded(dtype, clusters):
    """In each tile, all weights but one or two are rounded the same way: to 1."""
    x, queries = torch.ones(1, 1320, 16, dtype=dtype), torch.zeros(2, 16, dtype=dtype)
    bias = torch.full((1, 1320), -0.2 * torch.finfo(dtype).eps)
    bias[0, ::16] = 0
    with cuda_emulator.emulated(clusters=clusters):
        _, lse = vt_fast.tokenize(x, queries, pixel_bias=bias, return_stats=True)
    torch.testing.assert_close(lse, bias.double().logsumexp(1, keepdim=True).float().expand(1, 2))


# Lanes without a pixel in the last tile, lanes without any, and a last tile that a mask removes.
@pytest.mark.parametrize(("pixels", "shown"), [(35, 35), (5, 5), (64, 32), (64, 16)])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_a_token_all_of_whose_scores_are_minus_infinity(dtype, pixels, shown, split):
    """They overflow in float; tokens are NaN, as in PyTorch."""
    x, queries = torch.randn(2, pixels, 16).to(dtype), torch.zeros(3, 16, dtype=dtype)
    x[..., 0], queries[1, 0] = 3e38, -3
    mask = (torch.arange(pixels) < shown).expand(2, -1)
    with cuda_emulator.emulated(clusters=3, split=split):
        tokens, lse = vt_fast.tokenize(x, queries, mask=mask, return_stats=True)
    assert tokens[:, 1].isnan().all()
    assert (lse[:, 1] == -torch.inf).all()
    assert tokens[:, ::2, 1:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
def test_rounded_weights_sum_to_1(dtype):
    """Before tokens are rounded, which hides what weights lack."""
    x, queries = torch.ones(2, 211, 32, dtype=dtype), torch.zeros(5, 32, dtype=dtype)
    bias = torch.randn(2, 211)
    with cuda_emulator.emulated():
        ops = torch.ops.vt_fast if cuda_emulator.REAL else torch.ops.vt_fast_emulated
        own = ops.tokenize_cuda if cuda_emulator.REAL else ops.tokenize
        _, exact, _ = own(x, queries, None, bias, None, 1, True)
    assert (exact - 1).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("columns", [33, 64])
def test_many_columns_of_extra_values(columns, dtype):
    for op in ("tokenize", "project_tokenize"):
        found = problem(op, ("extra_values",), channels=32)
        found.operands["extra_values"] = torch.randn(35, columns, dtype=torch.float64)
        check(found, dtype, seed=3)


@pytest.mark.parametrize(
    ("keys", "values", "queries", "token_bias", "dtype", "clusters"),
    pairs([True, False], [True, False], [True, False], [True, False], DTYPES, [1, 2, 3, 5]),
    ids=short,
)
def test_operands_that_the_batch_shares(keys, values, queries, token_bias, dtype, clusters):
    shared = {"keys": keys, "values": values, "queries": queries, "token_bias": token_bias}
    for op, heads in (("project", ()), ("project_tokenize", ()), ("project_tokenize", ("num_heads",))):
        found = problem(op, ("token_bias", *heads), channels=48, batch=3)
        for name, value in shared.items():
            if value and name in found.operands:
                found.operands[name] = found.operands[name][0]
        check(found, dtype, seed=1 + clusters, clusters=clusters)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    ("op", "options"), [("project", ()), ("project", ("num_heads",)), ("project_tokenize", ())]
)
def test_removed_tokens_do_not_matter(op, options, dtype):
    """With NaN in tokens that their bias removes, others in each sample, results are those without it."""
    heads = 2 if options else 1
    clean = problem(op, ("token_bias", *options), channels=48, tokens=64 // heads, queries=64)
    removed = ([0, 31, 33, 63], [5, 40])
    for sample, rows in enumerate(removed):
        clean.operands["token_bias"][sample] = 0.5
        clean.operands["token_bias"][sample, rows] = -torch.inf
    round_operands(clean, dtype)
    dirty = dict(clean.operands) | {"keys": clean.operands["keys"].clone()}
    if heads == 1:
        dirty["values"] = clean.operands["values"].clone()
    for name in {"keys", "values"} & dirty.keys() if heads == 1 else {"keys"}:
        for sample, rows in enumerate(removed):
            dirty[name][sample, rows] = torch.nan
    with cuda_emulator.emulated(seed=4):
        expected = clean.solve(dtype)
        for name, value in Problem(op, dirty, clean.options).solve(dtype).items():
            assert torch.equal(value, expected[name]), name

"""NaN and infinity reach the results that they reach in plain PyTorch, and hidden numbers reach none."""

import pytest
import torch

import vt_fast
from tests._support import cuda_emulator, devices, problems
from tests._support.emulated_cases import DTYPES, conditions, problem
from tests._support.judging import kinds, round_operands, short
from tests._support.pairs import pairs
from tests._support.problems import CASES

JUNK = [torch.nan, torch.inf, -torch.inf]
PLACES = [0.0, 0.13, 0.61, 1.0]


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("case", CASES, ids=short)
def test_in_an_operand(case, layout):
    base = problem(*case, layout, channels=48, height=5, width=7)
    names = [name for name, value in base.operands.items() if value.is_floating_point()]
    for index, (name, place, junk, dtype) in enumerate(pairs(names, PLACES, JUNK, DTYPES)):
        value = base.operands[name].clone(memory_format=torch.contiguous_format)
        value.view(-1)[round(place * (value.numel() - 1))] = junk
        dirty = problems.Problem(base.op, base.operands | {name: value}, base.options)
        round_operands(dirty, dtype)
        reference = dirty.solve(plain=True)
        with devices.preferring("torch"):
            formulas = [dirty.solve(torch.float64), dirty.solve(dtype)]
        with cuda_emulator.emulated(**conditions(index)):
            found = dirty.solve(dtype)
        for of, got in found.items():
            allowed = [reference] if of.startswith("result") else [reference, *formulas]
            same = torch.stack([kinds(got) == kinds(way[of]) for way in allowed]).any(0)
            if "num_heads" in base.options and case[0] != "tokenize":
                # Heads of project share products: NaN may reach the other heads of its sample.
                spoilt = ~torch.stack([way[of].isfinite() for way in allowed]).all(0)
                of_sample = spoilt if of not in ("dkeys", "dvalues") else spoilt.any().expand_as(spoilt)
                same |= got.isnan() & of_sample.flatten(1).any(1).view(-1, *[1] * (got.dim() - 1))
            assert same.all(), f"{junk} in {name} at {place}: {of} in {dtype}"


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize(
    "case",
    [
        *(case for case in CASES if {"mask", "pixel_bias", "token_bias", "shared bias"} & set(case[1])),
        ("project", ("token_bias",)),
        ("project_tokenize", ("no map", "pixel_bias")),
        ("project_tokenize", ("no map", "token_bias")),
    ],
    ids=short,
)
def test_hidden_numbers_do_not_matter(case, layout, dtype):
    """With NaN wherever operands must not be read, results and gradients are those without it."""
    op, options = case
    clean = problem(op, options, layout, channels=48, height=5, width=7)
    operands = clean.operands
    hidden = torch.zeros(operands["x"].shape[0], 35, dtype=torch.bool)
    if "mask" in operands:
        hidden |= ~operands["mask"]
    if "pixel_bias" in operands:
        removed = torch.rand(operands["pixel_bias"].shape) < 0.2
        operands["pixel_bias"][removed] = -torch.inf
        hidden |= removed
    # project's own results use all pixels.
    hides_pixels = op == "tokenize" or "no map" in options
    round_operands(clean, dtype)
    dirty = problems.Problem(op, dict(operands), clean.options)
    if hides_pixels:
        shown = hidden if layout == "bnc" else hidden.unflatten(1, (5, 7))
        for name in {"x", "residual"} & operands.keys():
            value = operands[name].clone()
            (value if layout == "bnc" else value.permute(0, 2, 3, 1))[shown] = torch.nan
            dirty.operands[name] = value
    if (
        "token_bias" in operands
        and "shared" not in options
        and operands["values"].dim() == 3
        and "num_heads" not in options
    ):
        # The first key is removed from all samples.
        for name in ("keys", "values"):
            value = dirty.operands[name].clone()
            value[:, 0] = torch.nan
            dirty.operands[name] = value
    with cuda_emulator.emulated(seed=11):
        expected, found = clean.solve(dtype), dirty.solve(dtype)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_a_sample_without_pixels(dtype):
    empty = problem("tokenize", ("mask",), "nchw", channels=48)
    empty.operands["mask"][1] = False
    with cuda_emulator.emulated():
        found = empty.solve(dtype)
    assert not found["result 0"][1].any()
    assert (found["result 1"][1] == -torch.inf).all()
    assert not found["dx"][1].any()
    assert not found["dqueries"][1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("op", ["tokenize", "project_tokenize"])
def test_nan_in_a_sample_does_not_reach_others(op, layout, dtype):
    """One block takes all samples in turn. In NCHW, tiles reach behind the last row of a sample."""
    dirty = problem(op, ("extra_values",), layout, batch=3, channels=48, height=5, width=7)
    dirty.operands["x"][1] = torch.nan
    with cuda_emulator.emulated(clusters=1):
        found = dirty.solve(dtype)
    for name, value in found.items():
        if name.startswith("result"):
            assert value[1].isnan().any(), name
            assert value[::2].isfinite().all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_infinity_in_a_channel_does_not_reach_the_one_before(dtype):
    """Rows of 35 pixels are copied in words, which may reach into the next row."""
    dirty = problem("tokenize", (), "nchw", channels=48, height=5, width=7)
    dirty.operands["x"][1, 9, 0, 0] = -torch.inf
    dirty.operands["queries"][..., 9] = dirty.operands["queries"][..., 9].abs() + 1
    with cuda_emulator.emulated(seed=3):
        tokens = dirty.solve(dtype)["result 0"][1]
    assert tokens[:, 9].isnan().all()  # 0 times infinity
    assert tokens[:, :9].isfinite().all()
    assert tokens[:, 10:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_extra_values_of_masked_pixels(dtype):
    """The batch shares them, and each sample uses those of its own pixels."""
    dirty = problem("tokenize", ("mask", "extra_values"), "bnc", channels=48)
    dirty.operands["extra_values"][3] = torch.nan
    dirty.operands["mask"][:, 3] = torch.arange(dirty.operands["mask"].shape[0]) == 1
    with cuda_emulator.emulated(seed=3):
        tokens = dirty.solve(dtype)["result 0"]
    assert tokens[1, :, 48:].isnan().all()
    assert tokens[1, :, :48].isfinite().all()
    assert tokens[0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(("sign", "keys"), [(1, 16), (1, 5), (-1, 16)])  # 16 rows are taken at a time
@pytest.mark.parametrize(
    "case", [("project", ()), ("project", ("token_bias",)), ("project_tokenize", ())], ids=short
)
def test_a_pixel_of_which_all_scores_are_infinite(case, sign, keys, dtype):
    """Its weights are NaN, unlike those of keys that a bias removes."""
    base = problem(*case, "bnc", channels=48, height=5, width=7, tokens=keys)
    base.operands["x"][1, 20, 9] = -torch.inf
    base.operands["keys"][1, :, 9] = sign * base.operands["keys"][1, :, 9].abs()
    round_operands(base, dtype)
    reference = base.solve(plain=True)
    assert reference["result 0"][1, 20].isnan().all()
    with cuda_emulator.emulated(seed=3):
        found = base.solve(dtype)
    for name, value in found.items():
        # NaN times a removed key's weight of 0 is NaN to autograd; the kernels leave the key out.
        if name.startswith("result") or not case[1]:
            assert torch.equal(kinds(value), kinds(reference[name])), name


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_what_lies_behind_the_rows_of_a_view(dtype):
    """Rows of 12 pixels that are aligned to 16 bytes: copies of whole pieces would reach behind them."""
    around = torch.full((2, 32, 16), torch.nan, dtype=dtype)
    around[..., :12] = torch.randn(2, 32, 12)
    x, queries = around[..., :12].unflatten(2, (3, 4)), torch.randn(4, 32, dtype=dtype)
    with cuda_emulator.emulated(seed=3):
        found, expected = vt_fast.tokenize(x, queries), vt_fast.tokenize(x.contiguous(), queries)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("op", ["project", "project_tokenize"])
def test_infinite_keys_where_the_last_tile_is_not_full(op, layout, dtype):
    """Its pixels behind the end are 0, and 0 times infinity is NaN."""
    base = problem(op, (), layout, channels=48, height=5, width=7)
    operands = dict(base.operands)
    operands["x"] = operands["x"].abs() + 0.1
    keys = operands["keys"].clone()
    keys.view(-1, keys.shape[-1])[0, 3] = -torch.inf
    dirty = problems.Problem(base.op, operands | {"keys": keys}, base.options)
    round_operands(dirty, dtype)
    reference = dirty.solve(plain=True)
    with cuda_emulator.emulated(seed=5):
        found = dirty.solve(dtype)
    for name, value in found.items():
        if name.startswith("result") or (op == "project" and name != "dx"):
            assert value.isfinite().all(), name
            assert reference[name].isfinite().all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
def test_masked_pixels_get_no_gradient_of_infinite_queries(layout, dtype):
    """A weight of 0 times infinity would be NaN."""
    dirty = problem("tokenize", ("mask",), layout, channels=48, height=5, width=7)
    dirty.operands["queries"][..., 9] = torch.inf
    with cuda_emulator.emulated(seed=7):
        dx = dirty.solve(dtype)["dx"]
    if layout == "nchw":
        dx = dx.flatten(2).mT
    assert dx[dirty.operands["mask"]].isnan().any()
    assert not dx[~dirty.operands["mask"]].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
def test_nan_in_a_masked_pixel_whose_map_has_a_gradient(layout, dtype):
    """The mask hides it from tokens, and not from gradients of keys, which the new map has too."""
    dirty = problem("project_tokenize", ("mask",), layout, channels=48, height=5, width=7)
    dirty.operands["mask"][1, 3] = False
    x = dirty.operands["x"]
    (x if layout == "bnc" else x.flatten(2).mT)[1, 3] = torch.nan
    with cuda_emulator.emulated(seed=7):
        found = dirty.solve(dtype)
    assert found["result 1"].isfinite().all()
    for name in ("dkeys", "dvalues"):
        assert found[name][0].isfinite().all(), name
        assert found[name][1].isnan().all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_nan_in_a_gradient_of_a_channel_does_not_reach_the_one_before(dtype):
    """Rows of 35 pixels are copied in words, which may reach into the next row."""
    operands = problem("project", (), "nchw", channels=48, height=5, width=7).leaves(dtype)
    gradient = torch.randn(2, 48, 5, 7, dtype=dtype)
    gradient[1, 9, 0, 0] = torch.nan
    with cuda_emulator.emulated(seed=3):
        dvalues = torch.autograd.grad(
            vt_fast.project(**operands, residual=None), operands["values"], gradient
        )[0][1]
    assert dvalues[:, 9].isnan().all()
    assert dvalues[:, :9].isfinite().all()
    assert dvalues[:, 10:].isfinite().all()


@pytest.mark.parametrize("clusters", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_lse_of_an_infinite_logit(dtype, clusters):
    """It is infinite, although the weights are NaN."""
    x, queries, bias = torch.randn(1, 200, 16), torch.randn(2, 16), torch.randn(1, 200)
    bias[0, 67] = torch.inf
    with cuda_emulator.emulated(clusters=clusters):
        tokens, lse = vt_fast.tokenize(x.to(dtype), queries.to(dtype), pixel_bias=bias, return_stats=True)
    assert tokens.isnan().all()
    assert torch.equal(lse, torch.full((1, 2), torch.inf))

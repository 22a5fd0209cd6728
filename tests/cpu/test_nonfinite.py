"""NaN and infinity in operands reach the same results as in plain PyTorch, from any vector lane."""

import pytest
import torch

from tests._support import devices, problems
from tests._support.instruction_sets import each
from tests._support.judging import DTYPES, kinds, round_operands, short
from tests._support.pairs import pairs
from tests._support.problems import CASES, make, rounded

JUNK = [torch.nan, torch.inf, -torch.inf]
# positions in a tensor, as a fraction of its elements; 1.0 is the last lane of the last vector
PLACES = [0.0, 0.13, 0.61, 1.0]


def several_chunks(op, options, layout):
    return make(op, options, layout, batch=2, channels=18, height=12, width=25)


def poisoned(problem, name, place, junk):
    """The problem with one element of an operand replaced."""
    value = problem.operands[name].clone(memory_format=torch.contiguous_format)
    value.view(-1)[round(place * (value.numel() - 1))] = junk
    return problems.Problem(problem.op, problem.operands | {name: value}, problem.options)


def check(solve, what, dtypes=DTYPES):
    """Compare ``solve(dtype, plain)`` of the kernels with that of plain PyTorch.

    Results must agree with the reference. Each number of a gradient must agree with the reference or with the
    backend "torch", which has the kernels' formulas: 0 times infinity may appear elsewhere in them.
    """
    for dtype in dtypes:
        with devices.preferring("torch"):
            reference, formulas = solve(dtype, True), [solve(torch.float64, False), solve(dtype, False)]
        for instruction_set in each():
            for name, value in solve(dtype, False).items():
                found = kinds(value)
                allowed = [reference] if name.startswith("result") else [reference, *formulas]
                same = torch.stack([found == kinds(way[name]) for way in allowed]).any(0)
                assert same.all(), f"{what}: {name} in {dtype} on {instruction_set}"


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize(("op", "options"), CASES)
def test_in_an_operand(op, options, layout):
    problem = several_chunks(op, options, layout)
    names = [name for name, value in problem.operands.items() if value.is_floating_point()]
    for name, place, junk, dtype in pairs(names, PLACES, JUNK, DTYPES):
        dirty = poisoned(problem, name, place, junk)

        def solve(dtype, plain, dirty=dirty):
            copy = problems.Problem(dirty.op, dict(dirty.operands), dirty.options)
            round_operands(copy, dtype)
            return copy.solve(torch.float64 if plain else dtype, plain)

        check(solve, f"{junk} in {name} at {place}", [dtype])


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize(
    ("op", "options"), [case for case in CASES if case[0] != "project" or "token_bias" in str(case[1])]
)
def test_masked_pixels_and_removed_tokens_do_not_matter(op, options, layout):
    """With NaN and infinity wherever operands must not be read, all results are finite in every dtype."""
    problem = several_chunks(op, options, layout)
    operands = problem.operands
    if "mask" in operands and (op == "tokenize" or "no map" in options):
        hidden = ~operands["mask"] if layout == "bnc" else ~operands["mask"].unflatten(1, (12, 25))
        for name in {"x", "residual"} & operands.keys():
            value = operands[name].clone()
            (value if layout == "bnc" else value.permute(0, 2, 3, 1))[hidden] = torch.nan
            operands[name] = value
    if "pixel_bias" in operands and op == "tokenize":
        hidden = torch.rand(operands["pixel_bias"].shape) < 0.2
        operands["pixel_bias"][hidden] = -torch.inf
        value = operands["x"].clone()
        shown = hidden if layout == "bnc" else hidden.unflatten(1, (12, 25))
        (value if layout == "bnc" else value.permute(0, 2, 3, 1))[shown] = torch.inf
        operands["x"] = value
    if "token_bias" in operands:
        # the first head's first token is removed
        operands["keys"][..., 0, :] = torch.nan
        operands["values"][..., 0, : operands["values"].shape[-1] // problem.options.get("num_heads", 1)] = (
            torch.inf
        )
    for dtype in DTYPES:
        for instruction_set in each():
            for name, value in problem.solve(dtype).items():
                assert value.isfinite().all(), (dtype, instruction_set, name)


@pytest.mark.parametrize(("case", "layout", "junk"), pairs(CASES, ["bnc", "nchw"], JUNK), ids=short)
def test_in_an_arriving_gradient(case, layout, junk):
    problem = several_chunks(*case, layout)
    count = len(problem.call(problem.operands, plain=True))
    for index in range(count):
        place = PLACES[(index + JUNK.index(junk)) % len(PLACES)]

        def solve(dtype, plain, index=index, place=place):
            copy = problems.Problem(problem.op, dict(problem.operands), problem.options)
            round_operands(copy, dtype)
            kind = torch.float64 if plain else dtype
            operands = {name: rounded(value, kind) for name, value in copy.operands.items()}
            results = copy.call(operands, plain)
            generator = torch.Generator().manual_seed(3)
            arriving = [
                torch.randint(-4, 5, result.shape, generator=generator).to(result.dtype) / 4
                for result in results
            ]
            flat = arriving[index].view(-1)
            flat[round(place * (flat.numel() - 1))] = junk
            names = [name for name, value in operands.items() if value.requires_grad]
            leaves = [operands[name] for name in names]
            return dict(zip(names, torch.autograd.grad(results, leaves, arriving), strict=True))

        check(solve, f"{junk} in the gradient of result {index} at {place}")


@pytest.mark.parametrize("lane", range(33))
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
def test_nan_in_any_lane_of_any_chunk_reaches_lse(layout, lane):
    for first in (0, 160, 267):
        problem = several_chunks("tokenize", (), layout)
        clean = problem.operands["x"]
        dirty = clean.clone()
        (dirty if layout == "bnc" else dirty.flatten(2).transpose(1, 2))[1, first + lane, 5] = torch.nan
        problem.operands["x"] = dirty
        for dtype in DTYPES:
            for name in each():
                lse = problem.call({key: v.to(dtype) for key, v in problem.operands.items()}, plain=False)[1]
                assert lse[1].isnan().all(), (dtype, name)
                assert lse[0].isfinite().all(), (dtype, name)


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("places", [(3, 4), (4, 3), (3, 299), (299, 3), (20, 150), (150, 20)])
def test_nan_beside_an_infinite_logit_is_not_lost(layout, places):
    """The lse of an infinite logit is infinite, or NaN if there is also a NaN, in any chunk."""
    problem = several_chunks("tokenize", ("pixel_bias",), layout)
    weights = problem.operands["pixel_bias"]
    weights[0, places[0]], weights[:, places[1]] = torch.nan, torch.inf
    expected = problem.call(problem.operands, plain=True)
    assert expected[1][0].isnan().all()
    assert (expected[1][1] == torch.inf).all()
    for dtype in DTYPES:
        for name in each():
            found = problem.call({key: v.to(dtype) for key, v in problem.operands.items()}, plain=False)
            for value, truth in zip(found, expected, strict=True):
                assert torch.equal(kinds(value), kinds(truth)), (dtype, name)

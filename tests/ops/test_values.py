"""Results and gradients of every op, layout, option and dtype against plain PyTorch in float64."""

import pytest
import torch

from tests._support.comparing import assert_repeated, assert_solved, tolerance
from tests._support.judging import short
from tests._support.pairs import pairs
from tests._support.problems import CASES, LAYOUTS, OPS, OPTIONS, make


@pytest.mark.one_in(7)
@pytest.mark.parametrize(("op", "options"), CASES)
def test_equals_autograd_through_the_reference(op, options):
    assert_solved(make(op, options, "nchw"))


@pytest.mark.one_in(5)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_layouts(op, layout):
    assert_solved(make(op, ("pixel_bias",) if op == "tokenize" else ("residual", "wide"), layout))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("case", "layout", "dtype"),
    pairs(CASES, ["bnc", "nchw", "channels_last"], [torch.float32, torch.bfloat16, torch.float16]),
    ids=short,
)
def test_as_accurate_as_plain_pytorch(case, layout, dtype):
    assert_solved(make(*case, layout), dtype)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("op", "tokens", "size"), pairs(OPS, [1, 7, 8, 16, 17, 64], [(1, 1), (1, 7), (13, 11)])
)
def test_token_counts_and_map_sizes(op, tokens, size):
    height, width = size
    assert_solved(
        make(op, (), "nchw", channels=17, height=height, width=width, tokens=tokens, queries=tokens)
    )


@pytest.mark.one_in(5)
@pytest.mark.parametrize("channels", [1, 2, 3, 31])
@pytest.mark.parametrize("op", OPS)
def test_channel_counts(op, channels):
    assert_solved(make(op, (), "channels_last", channels=channels))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("elements", [1, 100, 400, 10**6])
def test_tiling_changes_nothing(op, elements, monkeypatch):
    from vt_fast.backends.eager import tiles

    monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", elements)
    options = () if op == "project" else ("mask", "pixel_bias", "extra_values", "shared")
    problem = make(op, options, "nchw", batch=3)
    if op != "project":
        problem.operands["mask"][0, :20] = False  # whole tiles without a valid pixel
        problem.operands["mask"][1] = False
    assert_solved(problem)


@pytest.mark.on_cpu
@pytest.mark.parametrize(("op", "options"), CASES)
def test_gradcheck(op, options, backend):
    if backend == "triton" and options not in OPTIONS[op][:2]:
        pytest.skip("takes long in Triton's interpreter")
    problem = make(op, options, "nchw", channels=4, height=2, width=3, tokens=2, queries=2)
    # The interpreter takes long for each entry of a Jacobian, so there a random direction is compared.
    problem.gradcheck(fast=backend == "triton")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_bitwise_repeatable(op, dtype):
    problem = make(op, ("shared",), "nchw", batch=3, channels=32, height=14, width=14)
    first = problem.solve(dtype)
    for name, value in problem.solve(dtype).items():
        assert torch.equal(value, first[name]), name


@pytest.mark.one_in(3)
@pytest.mark.parametrize("op", OPS)
def test_only_needed_gradients_are_computed_and_are_the_same(op):
    options = ("pixel_bias", "extra_values") if op != "project" else ("token_bias", "residual", "wide")
    problem = make(op, options, "nchw")
    everything = problem.solve()
    names = [name for name, value in problem.operands.items() if value.is_floating_point()]
    for wanted in names:
        operands = {name: value.detach() for name, value in problem.leaves().items()}
        operands[wanted].requires_grad_()
        generator = torch.Generator().manual_seed(1)
        results = problem.call(operands, plain=False)
        arriving = [torch.randint(-4, 5, r.shape, generator=generator, device="cpu") / 4 for r in results]
        loss = sum((r * a.to(r.device)).sum() for r, a in zip(results, arriving, strict=True))
        (grad,) = torch.autograd.grad(loss, operands[wanted])
        assert_repeated(grad, everything[f"d{wanted}"], wanted)


@pytest.mark.parametrize("result", [0, 1, 2])
def test_a_single_result_of_project_tokenize_can_be_differentiated(result):
    problem = make("project_tokenize", ("residual", "wide"), "nchw")
    operands = problem.leaves()
    leaves = list(operands.values())
    ours = torch.autograd.grad(
        problem.call(operands, plain=False)[result].square().sum(), leaves, allow_unused=True
    )
    plain = torch.autograd.grad(
        problem.call(operands, plain=True)[result].square().sum(), leaves, allow_unused=True
    )
    for name, a, b in zip(operands, ours, plain, strict=True):
        # An operand that the result does not depend on has no gradient in plain autograd, and 0 here.
        b = torch.zeros_like(a) if b is None else b
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-10), msg=name)

"""Large values, and sizes and strides beyond 32 bits."""

import pytest
import torch

import vt_fast
from tests._support.instruction_sets import each
from tests._support.judging import DTYPES, check, finite_size, short
from tests._support.problems import OPS, make
from vt_fast.reference import ops as reference

LARGE = 1 << 31


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", OPS)
def test_a_map_far_from_zero(op, dtype, layout):
    # Many tokens: each token has one error here, and the largest of a few errors is chance.
    problem = make(op, ("shared",), layout, channels=34, height=12, width=25, tokens=33, queries=33)
    problem.operands["x"] = problem.operands["x"] + 100
    for name in {"queries", "keys"} & set(problem.operands):
        problem.operands[name] = problem.operands[name] / 30
    check(problem, dtype)


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", OPS)
def test_logits_of_ten_thousand(op, dtype, layout):
    problem = make(op, ("shared",), layout, channels=34, height=12, width=25)
    for name in {"queries", "keys"} & set(problem.operands):
        problem.operands[name] = problem.operands[name] * 1e4
    operands = {name: value.to(dtype) for name, value in problem.operands.items()}
    leaves = {name: value.requires_grad_() for name, value in operands.items()}
    for instruction_set in each():
        results = problem.call(leaves, plain=False)
        grads = torch.autograd.grad(results, list(leaves.values()), [torch.ones_like(r) for r in results])
        for value in (*results, *grads):
            assert value.isfinite().all(), instruction_set
        if op == "tokenize":
            pixels = operands["x"] if layout == "bnc" else operands["x"].flatten(2).transpose(1, 2)
            slack = 20 * torch.finfo(dtype).eps * finite_size(pixels)
            assert (results[0] <= pixels.amax(1, keepdim=True) + slack).all(), instruction_set
            assert (results[0] >= pixels.amin(1, keepdim=True) - slack).all(), instruction_set


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("pixels", [1, 33, 300, 5000])
def test_a_constant_map_gives_that_constant(pixels, dtype, layout):
    pixel = torch.randn(2, 1, 35).to(dtype)
    x = pixel.repeat(1, pixels, 1)
    x = x if layout == "bnc" else x.transpose(1, 2)[..., None].contiguous()
    for name in each():
        tokens = vt_fast.tokenize(x, torch.randn(9, 35).to(dtype), backend="cpu")
        # All terms are equal, so the roundings of a tile's sum have one sign.
        allowed = torch.finfo(dtype).eps / 2 + min(pixels, 256) * torch.finfo(torch.float32).eps / 2
        assert ((tokens - pixel).abs() <= allowed * pixel.abs()).all(), name


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=short)
def test_a_million_pixels(dtype, layout):
    x = torch.randn(1, 1 << 20, 3).to(dtype)
    queries = torch.randn(8, 3).to(dtype)
    arriving = torch.randn(1, 8, 3).to(dtype)

    def solve(kind, function, **options):
        leaves = [x.to(kind), queries.to(kind)]
        if layout == "nchw":
            leaves[0] = leaves[0].transpose(1, 2).reshape(1, 3, 1024, 1024)
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        tokens, lse = function(*leaves, return_stats=True, **options)
        return [tokens, lse, *torch.autograd.grad(tokens, leaves, arriving.to(kind))]

    expected = solve(torch.float64, reference.tokenize)
    # the roundings of long sums, which are added block by block
    eps = torch.finfo(dtype).eps + 100 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for name in each():
        for found, exact in zip(solve(dtype, vt_fast.tokenize, backend="cpu"), expected, strict=True):
            assert (found - exact).abs().max() <= 2 * eps * exact.abs().max(), name


@pytest.mark.parametrize(("layout", "dtype"), [("bnc", torch.float32), ("nchw", torch.bfloat16)])
@pytest.mark.parametrize("op", OPS)
def test_wide_maps_and_many_tokens(op, layout, dtype):
    sizes = {"batch": 1, "channels": 4096, "height": 5, "width": 7, "tokens": 256, "queries": 256}
    check(make(op, ("shared",), layout, **sizes), dtype)


@pytest.fixture
def untouched_memory(nan_in_uninitialised_memory):
    """Lets tests allocate gigabytes and use only some pages: filling them with NaN would touch all."""
    torch.use_deterministic_algorithms(False)


# the dimension whose stride is more than 2^31 elements
@pytest.mark.slow
@pytest.mark.parametrize("far", ["samples", "pixels", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_strides_beyond_32_bits(far, dtype, untouched_memory):
    shapes = {"samples": (2, 40, 9), "pixels": (1, 2, 9), "channels": (1, 40, 2)}
    strides = {"samples": (LARGE + 64, 9, 1), "pixels": (1, LARGE + 64, 1), "channels": (1, 1, LARGE + 64)}
    shape = shapes[far]
    memory = torch.empty(LARGE + 4096, dtype=dtype)
    near = torch.randn(shape).to(dtype)
    x = memory.as_strided(shape, strides[far])
    x.copy_(near)
    out = torch.empty(LARGE + 4096, dtype=dtype).as_strided(shape, strides[far])
    queries, values = torch.randn(3, shape[2]).to(dtype), torch.randn(3, shape[2]).to(dtype)
    raw = torch.ops.vt_fast_cpu
    for name in each():
        tokens, lse = torch.empty(shape[0], 3, shape[2]), torch.empty(shape[0], 3)
        expected, expected_lse = torch.empty_like(tokens), torch.empty_like(lse)
        raw.tokenize(x, queries, None, None, None, 1, tokens, lse)
        raw.tokenize(near, queries, None, None, None, 1, expected, expected_lse)
        torch.testing.assert_close(tokens, expected, rtol=1e-2, atol=1e-2, msg=name)
        y, dx = torch.empty_like(near), torch.empty_like(near)
        raw.project(near, queries, values, None, None, True, 1, y)
        raw.project(x, queries, values, None, None, True, 1, out)
        torch.testing.assert_close(out, y, rtol=1e-2, atol=1e-2, msg=name)
        grads = [torch.empty(3, shape[2]) for _ in range(2)]
        raw.project_backward(near, near, queries, values, None, True, 1, dx, *grads, None)
        raw.project_backward(x, x, queries, values, None, True, 1, out, *grads, None)
        torch.testing.assert_close(out, dx, rtol=1e-2, atol=1e-2, msg=name)
        table = torch.randn(shape[1], 2).to(dtype)
        pooled = torch.empty(shape[0], 3, shape[2] + 2)
        raw.project_tokenize(
            x, queries, values, queries, None, x, None, None, table, False, 1, out, pooled, lse
        )
        torch.testing.assert_close(out, y, rtol=1e-2, atol=1e-2, msg=name)


@pytest.mark.slow
def test_more_pixels_than_32_bits_count():
    """An expanded map with one pixel in memory."""
    pixel = torch.full((1, 1, 1), 0.75)
    count = LARGE + 100
    tokens, lse = torch.empty(1, 1, 1), torch.empty(1, 1)
    torch.set_num_threads(2)
    x = pixel.expand(1, count, 1)
    torch.ops.vt_fast_cpu.tokenize(x, torch.ones(1, 1), None, None, None, 1, tokens, lse)
    torch.testing.assert_close(tokens, pixel)
    torch.testing.assert_close(lse, torch.tensor([[count]]).log() + 0.75)

"""Regressions: errors that a review of the CPU kernels found."""

import pytest
import torch

import vt_fast
from vt_fast import backends
from vt_fast.backends.cpu import library

NOT_BUILT = dict(backends.report())["cpu"]
pytestmark = pytest.mark.skipif(NOT_BUILT is not None, reason=str(NOT_BUILT))


@pytest.fixture(params=["baseline", "avx2", "avx512", "avx512_bf16"])
def instruction_set(request):
    if not library.choose(request.param):
        pytest.skip("not supported by this processor")
    yield request.param
    library.choose(None)


def every_float16():
    """All finite float16 numbers, as a map of 33 channels: whole vectors and a tail."""
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = values[values.isfinite()]
    return torch.cat([values, values.new_zeros(-len(values) % 33)]).view(1, -1, 33)


@pytest.mark.parametrize("flush", [False, True])
def test_float16_is_read_exactly_even_where_subnormal_floats_are_flushed(instruction_set, flush):
    x, zeros = every_float16(), torch.zeros(1, 33, dtype=torch.float16)
    torch.set_flush_denormal(flush)
    try:
        same = vt_fast.project(torch.zeros_like(x), zeros, zeros, residual=x, backend="cpu")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(same, x)


@pytest.mark.parametrize("columns", [1, 128, 129, 300])
def test_the_gradient_of_wide_extra_values(instruction_set, columns):
    torch.manual_seed(0)
    x, queries, mask = torch.randn(3, 70, 8), torch.randn(5, 8), torch.rand(3, 70) < 0.7
    grads = []
    for backend, dtype in (("cpu", torch.float32), ("torch", torch.float64)):
        torch.manual_seed(1)
        extra_values = torch.randn(70, columns).to(dtype).requires_grad_()
        tokens = vt_fast.tokenize(
            x.to(dtype), queries.to(dtype), mask=mask, extra_values=extra_values, backend=backend
        )
        grads += torch.autograd.grad(tokens, extra_values, torch.randn(tokens.shape).to(dtype))
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-4, atol=1e-5)


# Scored beside each other and beside the gradients of values: in whole vectors or in half of one.
@pytest.mark.parametrize("tokens", [12, 16, 20])
@pytest.mark.parametrize("layout", ["channels innermost", "pixels innermost"])
def test_the_backward_finds_the_scores_of_the_forward(instruction_set, layout, tokens):
    """Pixels with a large mean: a score that is rounded differently does not fit its log-sum-exp."""
    torch.manual_seed(0)
    x, queries = torch.randn(2, 400, 512) + 50, torch.randn(tokens, 512) * 0.1 + 1
    if layout == "pixels innermost":
        x = x.mT.contiguous().mT
    grads = {}
    for way in (("torch", torch.float64), ("torch", torch.float32), ("cpu", torch.float32)):
        leaves = [value.to(way[1]).requires_grad_() for value in (x, queries)]
        results = vt_fast.tokenize(*leaves, return_stats=True, backend=way[0])
        torch.manual_seed(5)
        arriving = [torch.randn(result.shape).to(way[1]) for result in results]
        grads[way] = torch.autograd.grad(results, leaves, arriving)
    exact, plain, found = (list(map(torch.Tensor.double, each)) for each in grads.values())
    for true, eager, grad in zip(exact, plain, found, strict=True):
        assert (grad - true).norm() < 5 * (eager - true).norm()

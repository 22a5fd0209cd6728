"""Comparing two ways to compute the same: results, and gradients of the operands they share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests._support import devices, problems
from vt_fast.testing import assert_as_accurate


def assert_close(actual, expected, name="result"):
    """Equal to 1e-10, some 10^5 roundings of float64 values of order 1; NaN and infinity where expected."""
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=1e-10, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


def assert_solved(problem: problems.Problem, dtype: torch.dtype | None = None) -> None:
    """Raise unless the op's results and gradients are right, in ``dtype`` or the backend's widest.

    In float64 they equal the reference's to 1e-10. In a narrower dtype they are about as near to the
    reference in float64, for the operands as they are after rounding, as the reference in that dtype is.
    """
    dtype = dtype or problems.widest()
    if dtype == torch.float64:
        expected = problem.solve(plain=True)
        for name, value in problem.solve().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-10, msg=name)
        return
    problem.round_operands(dtype)
    exact, plain = problem.solve(plain=True), problem.solve(dtype, plain=True)
    lse = largest_finite(exact[problem.lse]) if problem.lse else 0.0
    terms = summed_terms(problem)
    for name, value in problem.solve(dtype).items():
        assert value.dtype == (torch.float32 if name == problem.lse else dtype), name
        truncates = devices.truncates(devices.backend(), dtype)
        assert_as_accurate(value, exact[name], plain[name], name, lse=lse, terms=terms, truncates=truncates)


def summed_terms(problem: problems.Problem) -> int:
    """How many terms the sums have, one after the other, that a gradient comes from."""
    x = problem.operands["x"]
    channels = x.shape[1 if x.dim() == 4 else -1]
    pixels = x.shape[0] if x.dim() == 2 else x[0].numel() // channels
    if pixels == 1:
        # The softmax over one pixel has no gradient. What is left of two equal sums over the channels is
        # their rounding, which grows with how large they are too.
        return channels**2
    rows = [value.shape[-2] for name, value in problem.operands.items() if name in ("keys", "queries")]
    return 2 * (pixels + channels + sum(rows))


def largest_finite(values: torch.Tensor) -> float:
    """The largest magnitude that is finite, 0 if none is."""
    finite = values[values.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def tolerance(float64: float) -> float:
    """The same number of roundings in the backend's widest dtype, for values of order 1.

    A narrower one is not allowed more than 1e-12 takes in float64, some 5000.
    """
    if problems.widest() == torch.float64:
        return float64
    roundings = min(float64, 1e-12) / torch.finfo(torch.float64).eps
    return roundings * torch.finfo(problems.widest()).eps


def assert_repeated(actual: torch.Tensor, expected: torch.Tensor, name: str = "result") -> None:
    """The same bits, from another call that computes the same.

    On a GPU, Triton compiles a kernel anew for other options, and may contract other products into sums.
    """
    if devices.on_gpu(devices.backend()):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance(1e-12), equal_nan=True, msg=name)
    else:
        assert torch.equal(actual, expected), name


def assert_same(ours: Callable, theirs: Callable, **operands: torch.Tensor) -> None:
    """Raise unless two functions of the same operands have the same results and gradients.

    Every floating-point operand is differentiated. One that a function does not use has a gradient of 0.
    """
    found, expected = evaluate(ours, **operands), evaluate(theirs, **operands)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_close(found[name], value, name)


def evaluate(function: Callable, **operands: torch.Tensor) -> dict[str, torch.Tensor]:
    """Results of a function, and its operands' gradients for random cotangents, the same in each call."""
    leaves = {
        name: value.detach().requires_grad_() for name, value in operands.items() if value.is_floating_point()
    }
    results = function(**(operands | leaves))
    results = results if isinstance(results, tuple) else (results,)
    results = [result for result in results if result is not None]
    generator = torch.Generator().manual_seed(2)
    cotangents = [
        torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
        for result in results
    ]
    grads = torch.autograd.grad(results, list(leaves.values()), cotangents, allow_unused=True)
    answer = {f"result {index}": result.detach() for index, result in enumerate(results)}
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        answer[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return answer

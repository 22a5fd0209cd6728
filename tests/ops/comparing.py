"""Comparing two ways to compute the same: results, and gradients of the operands they share."""

from __future__ import annotations

from collections.abc import Callable

import torch


def assert_close(actual, expected, name="result"):
    """Equal to 1e-10, some 10^5 roundings of float64 values of order 1; NaN and infinity where expected."""
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=1e-10, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


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

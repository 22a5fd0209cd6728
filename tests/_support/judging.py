"""Compares the kernels' results and gradients for a problem with plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import torch

from tests._support import devices
from tests._support.instruction_sets import each
from tests._support.problems import CASES, Problem
from vt_fast.testing import assert_as_accurate, least_accurate

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def short(value: Any) -> str | None:
    """A dtype, or an op with its options, in the names of tests; None for anything else."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if value in CASES:
        return "-".join((value[0], *value[1]))
    return None


def round_operands(problem: Problem, dtype: torch.dtype) -> None:
    """Round the operands to ``dtype`` in place, so that the exact result is that of the kernels' operands."""
    for name, value in problem.operands.items():
        if value.dtype != torch.bool:
            problem.operands[name] = value.to(dtype).double()


def check(problem: Problem, dtype: torch.dtype) -> None:
    """Raise unless, on every instruction set, the kernels are as accurate as plain PyTorch in ``dtype``."""
    round_operands(problem, dtype)
    exact = problem.solve(plain=True)
    plain = exact if dtype == torch.float64 else plain_solution(problem, dtype, exact)
    for name in each():
        found = problem.solve(dtype)
        try:
            compare(problem, found, exact, plain, dtype)
        except AssertionError as error:
            raise AssertionError(f"on {name}: {error}") from error


def plain_solution(
    problem: Problem, dtype: torch.dtype, exact: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The problem in ``dtype`` by plain PyTorch: the less accurate of two ways.

    One is autograd through the definitions. The other is the backend "torch", which has the kernels'
    formulas: where these are differences of nearly equal numbers, as in a softmax over one pixel, autograd
    may be exact by chance. A result of several roundings to 16 bits may have the error of one at least: with
    few numbers, a smaller error is chance too.
    """
    plain = problem.solve(dtype, plain=True)
    with devices.preferring("torch"):
        formulas = problem.solve(dtype)
    worse = {}
    for name, truth in exact.items():
        ways = [plain[name], formulas[name]]
        if dtype.itemsize == 2 and (name != problem.lse or problem.op == "project_tokenize"):
            ways.append(truth * (1 + torch.finfo(dtype).eps))
        worse[name] = least_accurate(truth, ways)
    return worse


def compare(
    problem: Problem,
    found: dict[str, torch.Tensor],
    exact: dict[str, torch.Tensor],
    plain: dict[str, torch.Tensor],
    dtype: torch.dtype,
    terms: int | None = None,
) -> None:
    """Raise unless each result and gradient in ``found`` is about as accurate as in ``plain``.

    ``terms``: see :func:`vt_fast.testing.assert_as_accurate`; by default :func:`summed_terms`.
    """
    assert list(found) == list(exact)
    lse = finite_size(exact[problem.lse]) if problem.lse else 0.0
    terms = summed_terms(problem) if terms is None else terms
    for name, value in found.items():
        if dtype == torch.float64:
            close_in_float64(value, exact[name], name)
        else:
            statistic = torch.float32 if name == problem.lse else dtype
            assert value.dtype == statistic, name
            assert_as_accurate(value, exact[name], plain[name], name, lse=lse, terms=terms)


def close_in_float64(value: torch.Tensor, exact: torch.Tensor, name: str) -> None:
    """Raise unless errors are below 1e-10 of the largest value, and NaN and infinity are where expected."""
    tolerance = 1e-10 * max(1.0, finite_size(exact))
    torch.testing.assert_close(
        value, exact, rtol=0, atol=tolerance, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


def finite_size(value: torch.Tensor) -> float:
    """The largest finite magnitude, or 0."""
    return max(value[value.isfinite()].abs().amax().item(), 0.0) if value.isfinite().any() else 0.0


def summed_terms(problem: Problem) -> int:
    """Terms of the sums behind one value: channels, tokens, and all pixels of the batch."""
    x = problem.operands["x"]
    channels = x.shape[2] if x.dim() == 3 else x.shape[1]
    rows = sum(problem.operands[name].shape[-2] for name in ("keys", "queries") if name in problem.operands)
    return x.numel() // channels + channels + rows


def kinds(value: torch.Tensor) -> torch.Tensor:
    """Which elements are NaN, inf or -inf."""
    return value.isnan() * 3 + (value == torch.inf) * 1 + (value == -torch.inf) * 2

"""Problems that the CUDA kernels take, and how each of them is judged."""

from __future__ import annotations

from typing import Any

import torch

from tests._support import cuda_emulator, judging
from tests._support.problems import Problem, make

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Where channels are contiguous, where pixels are, and what is copied first.
LAYOUTS = ["bnc", "nchw", "channels_last"]


def problem(op: str, options: tuple[str, ...], layout: str = "bnc", **sizes: Any) -> Problem:
    """A problem whose channels are multiples of 8 in each head, also where the map gets wider."""
    found = make(op, options, layout, **sizes)
    if "wide" in options:
        # Four more channels than x has become eight, or sixteen for two heads.
        more = 12 if "num_heads" in options else 4
        for name in {"values", "queries", "residual"} & found.operands.keys():
            value = found.operands[name]
            dim = 1 if name == "residual" and value.dim() == 4 else value.dim() - 1
            found.operands[name] = torch.cat([value, value.narrow(dim, 0, more).flip(0)], dim)
    return found


def spreading(
    op: str,
    keys: str,
    values: str,
    normalize: str | None,
    options: tuple[str, ...],
    layout: str = "bnc",
    **sizes: Any,
) -> Problem:
    """A project or project_tokenize: keys for channel blocks or not, values summed over heads or not."""
    found = problem(op, options, layout, **sizes)
    operands = found.operands
    if keys == "blocks" and "num_heads" in options:
        operands["keys"] = operands["keys"][..., : operands["keys"].shape[-1] // 2] * 2**0.5
    if values == "summed" and "num_heads" in options:
        operands["values"] = torch.cat([operands["values"], operands["values"].flip(-1)], -2)
    if normalize != "tokens":
        found.options["normalize"] = normalize
    return found


def pooling(
    heads: str, normalize: str | None, options: tuple[str, ...], layout: str = "bnc", **sizes: Any
) -> Problem:
    """A tokenize with one head, or two that see channel blocks or all channels, and with other weights."""
    more = ("num_heads",) if heads == "blocks" else ()
    found = problem("tokenize", (*options, *more), layout, **sizes)
    if normalize != "pixels":
        found.options["normalize"] = normalize
    if heads == "full":
        found.options["num_heads"] = 2
    if "token_bias" in options or "shared bias" in options:
        lead = (found.operands["x"].shape[0],) if "token_bias" in options else ()
        bias = torch.randn(*lead, found.operands["queries"].shape[-2], dtype=torch.float64)
        bias[..., 1] = -torch.inf
        found.operands["token_bias"] = bias
    return found


class InPlace(Problem):
    """A problem whose operands are passed as they lie in memory, and not copied to aligned memory."""

    def leaves(self, *_: object) -> dict[str, torch.Tensor]:
        return {
            name: value.detach().requires_grad_(value.is_floating_point())
            for name, value in self.operands.items()
        }


def in_place(problem: Problem, dtype: torch.dtype) -> InPlace:
    """The same in ``dtype``."""
    operands = {
        name: value if value.dtype == torch.bool else value.to(dtype)
        for name, value in problem.operands.items()
    }
    return InPlace(problem.op, operands, problem.options)


def check(
    problem: Problem,
    dtype: torch.dtype,
    bias_dtype: torch.dtype | None = None,
    any_numbers: bool = False,
    **conditions: int,
) -> dict[str, cuda_emulator.Report]:
    """Raise unless the kernels are about as accurate as plain PyTorch in ``dtype``. Returns the ops' reports.

    On a GPU there are none. ``any_numbers``: results may be differences of nearly equal numbers.
    """
    judging.round_operands(problem, dtype)
    exact = problem.solve(plain=True)
    plain = judging.plain_solution(problem, dtype, exact)
    cancelled = 0.0
    if any_numbers and dtype == torch.float32:
        # 3xTF32 loses up to 2^-22 of each product. Numbers are of order one, and a sum of them may be 0: then
        # plain PyTorch is exact by chance.
        cancelled = 2**-21 * judging.summed_terms(problem) ** 0.5
    for name, truth in exact.items():
        other = truth + cancelled
        if judging.finite_size(other - truth) > judging.finite_size(plain[name].double() - truth):
            plain[name] = other
    with cuda_emulator.emulated(**conditions) as reports:
        found = problem.solve(dtype, bias_dtype=bias_dtype)
    if bias_dtype is not None:
        found = {name: value.to(dtype) if name.endswith("_bias") else value for name, value in found.items()}
    terms = judging.summed_terms(problem)
    if cuda_emulator.REAL and dtype == torch.float32:
        # Tensor cores cut sums off where the emulator rounds them, so that errors add up, and not their
        # squares: one of half a unit for each of three products of eight terms.
        terms = (3 * terms // 8) ** 2
    judging.compare(problem, found, exact, plain, dtype, terms)
    return reports


def conditions(index: int) -> dict[str, int]:
    """Unkind ones, different for each index: the order of warps, when copies arrive, how work is split."""
    return {
        "seed": index + 1,
        "copies": index % 3,
        "clusters": (1, 2, 3, 5, 8)[index % 5],
        "split": index % 2 == 1,
    }

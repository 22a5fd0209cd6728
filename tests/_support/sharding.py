"""Problems whose pixels are shared out among processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from tests._support.problems import Problem

# Operands that have a number for each pixel; project's values are rows.
OF_PIXELS = ("x", "mask", "pixel_bias", "extra_values", "scores", "residual")


def is_of_pixels(problem: Problem, name: str) -> bool:
    """Whether each process has a part of an operand, not all of it."""
    return name in OF_PIXELS or (name == "values" and problem.op == "tokenize")


def dim_of_pixels(problem: Problem, name: str, value: Tensor) -> int:
    """The dimension of an operand, or of a result that is a map, along which it is cut."""
    bags = "offsets" in problem.operands
    if name == "extra_values":
        return 0
    if name == "scores":
        return 1 if bags else 2
    if bags:
        return 0
    return 2 if value.dim() == 4 else 1


def cuts(problem: Problem, shares: list[float]) -> list[int]:
    """Bounds of the processes' parts, in rows of pixels of a 4-D map and in pixels of others."""
    x = problem.operands["x"]
    length = x.shape[dim_of_pixels(problem, "x", x)]
    done, bounds = 0.0, [0]
    for share in shares:
        done += share
        bounds.append(round(done * length))
    assert bounds[-1] == length
    return bounds


def part(problem: Problem, name: str, value: Tensor, bounds: list[int], rank: int) -> Tensor:
    """This process's part of an operand, or of a result or a gradient like it."""
    x = problem.operands["x"]
    start, end = bounds[rank : rank + 2]
    if name == "offsets":
        return (value - start).clamp(0, end - start)
    if name != "map" and not is_of_pixels(problem, name):
        return value
    dim = dim_of_pixels(problem, name, value)
    if x.dim() == 4 and value.shape[dim] == x.shape[2] * x.shape[3]:
        start, end = start * x.shape[3], end * x.shape[3]
    return value.narrow(dim, start, end - start)


def is_map(problem: Problem, index: int) -> bool:
    """Whether this result is a map."""
    if problem.op == "project_tokenize":
        return bool(problem.options["return_map"]) and index == 0
    return problem.op == "project"


def cotangents(results: list[Tensor]) -> list[Tensor]:
    """As `Problem.solve` has them."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(-4, 5, result.shape, generator=generator) / 4 for result in results]


def solve(
    problem: Problem, function: Any, bounds: list[int], rank: int, shapes: list[Tensor], **options: Any
) -> dict[str, Tensor]:
    """This process's part of the problem's solution.

    Args:
        function: of :mod:`vt_fast.distributed`.
        bounds: of the processes' parts.
        shapes: all results in full, for their shapes.
    """
    operands = {
        name: part(problem, name, value, bounds, rank).clone().detach()
        for name, value in problem.operands.items()
    }
    for value in operands.values():
        value.requires_grad_(value.is_floating_point())
    found = function(**problem.arguments(operands), **options)
    results = [each for each in (found if isinstance(found, tuple) else (found,)) if each is not None]
    loss = torch.zeros((), dtype=torch.float64)
    for index, (result, cotangent) in enumerate(zip(results, cotangents(shapes), strict=True)):
        if is_map(problem, index):
            cotangent = part(problem, "map", cotangent, bounds, rank)
        loss = loss + (result.double() * cotangent).sum()
    names = [name for name, value in operands.items() if value.requires_grad]
    grads = torch.autograd.grad(
        loss, [operands[name] for name in names], allow_unused=True, materialize_grads=True
    )
    solution = {f"result {index}": result.detach() for index, result in enumerate(results)}
    return solution | {f"d{name}": grad for name, grad in zip(names, grads, strict=True)}


def part_of_solution(
    problem: Problem, solution: dict[str, Tensor], bounds: list[int], rank: int
) -> dict[str, Tensor]:
    """What a process should find, from the solution of one process."""
    found = {}
    for name, value in solution.items():
        if name.startswith("result"):
            kind = "map" if is_map(problem, int(name.split()[1])) else "tokens"
        else:
            kind = name[1:]
        found[name] = part(problem, kind, value, bounds, rank)
    return found


def replicated(problem: Problem, solution: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries that all processes should have alike."""
    return {
        name: value
        for name, value in solution.items()
        if not (
            is_map(problem, int(name.split()[1]))
            if name.startswith("result")
            else is_of_pixels(problem, name[1:])
        )
    }


def assert_same_bits(values: list[Tensor]) -> None:
    """Fail where the processes hold different ones."""
    flat = torch.cat([value.detach().double().reshape(-1) for value in values])
    everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, flat)
    for other in everyone:
        assert torch.equal(flat.view(torch.int64), other.view(torch.int64))

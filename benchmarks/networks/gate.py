"""No figure for a wrong result: results and gradients against the paper's equations in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.networks.cases import NECK, Case
from benchmarks.networks.sides import COMPILED, FUSED, REFERENCE, argument, module, results

# Errors may be so many times those of the paper's equations in the same dtype, and so many roundings besides.
_MULTIPLE, _ROUNDINGS = 3.0, 64.0


def complaints(
    case: Case, device: torch.device, dtype: torch.dtype, sides: tuple[str, ...]
) -> dict[str, str]:
    """What is wrong with each of ``sides`` that is wrong, on small inputs.

    Compared are the result and the gradients of all parameters, each as one vector: how far it is from the
    truth, relative to the truth's length.
    """
    truth = _solved(case, REFERENCE, device, torch.float64)
    plain = _errors(_solved(case, REFERENCE, device, dtype), truth)
    rounding = torch.finfo(dtype).eps
    found: dict[str, str] = {}
    for side in sides:
        if side not in (COMPILED, FUSED):
            continue
        reached = _errors(_solved(case, side, device, dtype), truth)
        for name, error, other in zip(("result", "gradient"), reached, plain, strict=True):
            allowed = _MULTIPLE * other + _ROUNDINGS * rounding
            if not error <= allowed:
                found.setdefault(side, f"{name}: relative error {error:.3g}, allowed {allowed:.3g}")
    return found


def _solved(case: Case, side: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Result and gradient, each as one vector. In evaluation: statistics of a small batch would be noise."""
    made = module(case, side, device, dtype).eval()
    given = argument(case.small, 2, case.kind == NECK, device, dtype)
    found = results(made(given))
    generator = torch.Generator().manual_seed(2)
    cotangents = [
        torch.randn(each.shape, generator=generator, dtype=torch.float64).to(device, dtype) for each in found
    ]
    gradients = torch.autograd.grad(found, list(made.parameters()), cotangents, allow_unused=True)
    return _joined(found), _joined([each for each in gradients if each is not None])


def _joined(values: list[Tensor]) -> Tensor:
    return torch.cat([value.detach().double().flatten() for value in values])


def _errors(found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> tuple[float, float]:
    result, gradient = (float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))
    return result, gradient

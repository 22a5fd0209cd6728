"""Who takes part in a case, and what each does in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks.cases import Case, Shape
from vt_fast.nn import set_backend

CONVOLUTIONAL, REFERENCE, COMPILED, FUSED = "convolutions", "VT as written", "VT compiled", "VT fused"
SIDES = (CONVOLUTIONAL, REFERENCE, COMPILED, FUSED)
INFERENCE, TRAINING = "inference", "training step"
PASSES = (INFERENCE, TRAINING)

Argument = Tensor | list[Tensor]


def module(case: Case, side: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The side's module, the same parameters on all sides that have the same.

    The paper's equations eager, compiled by `torch.compile` in the part that replaces something, or our
    default backend. Residual branches that start at zero get random weights, so that they do something.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = case.convolutional() if side == CONVOLUTIONAL else case.visual()
        for parameter in made.parameters():
            if not parameter.detach().any() and parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    made = made.to(device, dtype)
    if side in (REFERENCE, COMPILED):
        set_backend(made, "reference")
    if side == COMPILED:
        torch._dynamo.reset()
        made.get_submodule(case.part).compile(dynamic=False)
    return made


def argument(
    shapes: tuple[Shape, ...], batch: int, listed: bool, device: torch.device, dtype: torch.dtype
) -> Argument:
    """Normal numbers, the same in each call."""
    generator = torch.Generator().manual_seed(1)
    drawn = [
        torch.randn((batch, *shape), generator=generator, dtype=torch.float64).to(device, dtype)
        for shape in shapes
    ]
    return drawn if listed else drawn[0]


def results(value: Any) -> list[Tensor]:
    """A module's result as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def step(made: nn.Module, given: Argument, which: str) -> Callable[[], Any]:
    """One inference, or one step of training: forward, backward to all parameters, SGD with momentum.

    The learning rate is 0, so that all steps see the same weights; that takes as long as any other.
    """
    if which == INFERENCE:
        made.eval()

        def infer() -> Any:
            with torch.no_grad():
                return made(given)

        return infer
    made.train()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.0, momentum=0.9)
    # Maps have a gradient too: in a network, what is before them is trained.
    given = [each.requires_grad_() for each in given] if isinstance(given, list) else given.requires_grad_()
    cotangents: list[Tensor] = []

    def train() -> None:
        found = results(made(given))
        if not cotangents:
            cotangents.extend(torch.full_like(each, 1 / each.numel()) for each in found)
        torch.autograd.backward(found, cotangents)
        optimizer.step()
        optimizer.zero_grad()
        for each in results(given):
            each.grad = None

    return train

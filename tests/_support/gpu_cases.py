"""Calls for tests of the GPU: one shape for most of them, so that few kernels are compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tests._support import devices
from tests._support.problems import Problem, make
from vt_fast.backends.triton.schedule import observed

# With these, forward and backward of each op take several programs for a sample's pixels.
SHAPE = (
    {"batch": 2, "channels": 8, "height": 40, "width": 16, "tokens": 2, "queries": 2}
    if devices.PRETENDED
    else {"batch": 2, "channels": 64, "height": 128, "width": 128, "tokens": 16, "queries": 16}
)

# As many options together as an op has.
OPTIONS = {
    "tokenize": ("mask", "pixel_bias", "extra_values", "shared"),
    "project": ("residual", "num_heads", "token_bias", "shared"),
    "project_tokenize": ("num_heads", "token_bias", "mask", "pixel_bias"),
}


@dataclass
class Call:
    """A call of an op and of its backward, on operands that stay where they are."""

    problem: Problem
    operands: dict[str, torch.Tensor]
    arriving: list[torch.Tensor]

    def forward(self) -> list[torch.Tensor]:
        """The op's results."""
        return self.problem.call(self.operands, plain=False)

    @property
    def leaves(self) -> list[torch.Tensor]:
        """What is differentiated."""
        return [value for value in self.operands.values() if value.requires_grad]

    def __call__(self) -> list[torch.Tensor]:
        """Results, and gradients of all operands."""
        results = self.forward()
        grads = torch.autograd.grad(results, self.leaves, self.arriving)
        return [*(result.detach() for result in results), *grads]


def prepared(problem: Problem, dtype: torch.dtype) -> Call:
    """A call in a dtype, with random gradients that arrive."""
    operands = problem.leaves(dtype)
    with torch.no_grad():
        arriving = [torch.randn_like(result) for result in problem.call(operands, plain=False)]
    return Call(problem, operands, arriving)


def standard(op: str, dtype: torch.dtype, layout: str = "nchw", **sizes: int) -> Call:
    """A call of the shape and the options that most tests share."""
    return prepared(make(op, OPTIONS[op], layout, **(SHAPE | sizes)), dtype)


def parts(call: Call) -> dict[str, float]:
    """In how many parts, at least, each kernel that sums over pixels cuts those of a sample."""
    x = call.operands["x"]
    batch, channels = x.shape[:2]
    found = {}

    def note(kernel, grid, arguments, constants):
        if "cfg" in constants and kernel.__name__ != "project_forward":
            # Programs that differ in their sample, or in their channels, do not share a sum.
            found[kernel.__name__] = math.prod(grid) / (batch * math.ceil(channels / constants["cfg"].CHUNK))

    with observed(note):
        call()
    return found


def same_bits(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Whether all are equal and none holds a NaN."""
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))

"""Seeded makers of float64 operands for the tests of the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vt_fast.reference.linear import Projection


class Maker:
    """Makes random float64 tensors and projections from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def projection(self, width: int, out: int, groups: int = 1, bias: bool = True) -> Projection:
        return Projection(self.tensor(out, width // groups), self.tensor(out) if bias else None, groups)

    def permutation(self, length: int) -> Tensor:
        return torch.randperm(length, generator=self.generator)


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture(scope="session")
def maker() -> type[Maker]:
    """Give the class itself, for tests that draw their seeds with hypothesis."""
    return Maker


@pytest.fixture(autouse=True)
def single_threaded(one_thread):
    """These sizes gain nothing from more threads."""


def _close(actual: Tensor, expected: Tensor | list, tolerance: float = 1e-10) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="session")
def close():
    """Compare float64 values of order 1 to 1e-10, some 10^5 of their roundings."""
    return _close

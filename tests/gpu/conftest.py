"""Tests of the backend "triton" on a GPU; devices.py says how to try them without one."""

import pytest
import torch

from tests._support import devices


@pytest.fixture(autouse=True)
def backend():
    """Public functions run the kernels, and tensors are made where they run."""
    with devices.preferring("triton"), devices.factories_on("triton"):
        yield "triton"


@pytest.fixture
def cuda():
    """For what only CUDA has: streams, graphs, an allocator of its own."""
    if devices.PRETENDED:
        pytest.skip("is about CUDA itself")
    assert torch.cuda.is_available()


@pytest.fixture
def own_allocation(nan_in_uninitialised_memory):
    """Memory comes as the allocator gives it, not filled with NaN."""
    torch.use_deterministic_algorithms(False)

"""Every test here is about the backend "triton" on a GPU; see devices.py for how to try them without one."""

import sys
from pathlib import Path

import pytest
import torch

# Problems and comparisons are those of the ops' and the modules' own tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nn"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))

import devices
import problems

from vt_fast import backends


@pytest.fixture(autouse=True)
def triton_on_gpu(monkeypatch):
    """Public functions run the kernels, and tensors are made where they run."""
    monkeypatch.setattr(problems, "BACKEND", "triton")
    if devices.PRETENDED:
        monkeypatch.setitem(backends._REASONS, "cpu", "not for the tensors of a GPU")
    with devices.factories_on("triton"):
        yield


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

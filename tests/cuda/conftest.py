"""Tests of the CUDA kernels on an emulator: ops on CPU tensors run them. `make emulate` runs these."""

import platform

import pytest
import torch

from tests._support import cuda_emulator, devices


@pytest.fixture(scope="session", autouse=True)
def _built():
    """The library. Results start as NaN, so that what a kernel does not write is noticed."""
    if platform.machine() != "x86_64":
        pytest.skip("the emulator switches stacks on x86-64 alone")
    cuda_emulator.library()
    torch.ops.vt_fast_emulated.poison_results(True)


@pytest.fixture(autouse=True)
def backend():
    """What the tests' support asks for: calls on a CPU, which the emulator takes over."""
    with devices.preferring("cpu"):
        yield "cpu"

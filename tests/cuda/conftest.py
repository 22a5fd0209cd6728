"""Tests of the CUDA kernels, on an emulator or on a GPU. `make emulated` runs these."""

import platform

import pytest
import torch

from tests._support import cuda_emulator, devices


@pytest.fixture(scope="session", autouse=True)
def _built():
    """The library. Results start as NaN, so that what a kernel does not write is noticed."""
    if cuda_emulator.REAL:
        return
    if platform.machine() != "x86_64":
        pytest.skip("the emulator switches stacks on x86-64 alone")
    cuda_emulator.library()
    torch.ops.vt_fast_emulated.poison_results(True)


@pytest.fixture(autouse=True)
def backend():
    """Calls on a CPU, which the emulator takes over; or on a GPU that runs these kernels."""
    name = "cuda" if cuda_emulator.REAL else "cpu"
    with devices.preferring(name), devices.factories_on(name):
        yield name


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    """Skip what runs kernels that VT_FAST_EMULATED leaves out."""
    try:
        return (yield)
    except RuntimeError as error:
        if "this kernel is not built" in str(error):
            pytest.skip("VT_FAST_EMULATED leaves out its kernels")
        raise

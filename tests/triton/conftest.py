"""Every test here is about the backend "triton": on a GPU, or with TRITON_INTERPRET=1 on the CPU."""

import sys
from pathlib import Path

import pytest

# Problems and comparisons are those of the ops' own tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))

import devices
import problems

from vt_fast.backends import triton


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """A setting that is too large for a GPU is none that a call could get there."""
    try:
        return (yield)
    except Exception as error:
        if "no launch setting" not in str(error):
            raise
        pytest.skip(f"a setting for larger GPUs: {error}")


@pytest.fixture(autouse=True)
def triton_backend(monkeypatch):
    """Public functions run the kernels, on tensors of the device that they are for."""
    reason = triton.unavailable()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(problems, "BACKEND", "triton")
    with devices.factories_on("triton"):
        yield

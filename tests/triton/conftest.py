"""Every test here is about the backend "triton": on a GPU, or with TRITON_INTERPRET=1 on the CPU."""

import pytest

from tests._support import devices
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
def backend():
    """Public functions run the kernels, on tensors of the device that they are for."""
    reason = triton.unavailable()
    if reason is not None:
        pytest.skip(reason)
    with devices.preferring("triton"), devices.factories_on("triton"):
        yield "triton"

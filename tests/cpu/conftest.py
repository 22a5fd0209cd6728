"""Tests of the backend "cpu", on every instruction set that this machine supports."""

import pytest
import torch

from tests._support import devices
from vt_fast.backends import cpu
from vt_fast.backends.cpu import library


@pytest.fixture(autouse=True)
def backend():
    """Public functions run the kernels; the instruction set and the threads are restored afterwards."""
    reason = cpu.unavailable()
    if reason is not None:
        pytest.skip(reason)
    threads = torch.get_num_threads()
    with devices.preferring("cpu"):
        yield "cpu"
    torch.set_num_threads(threads)
    library.choose(None)

"""Every test of the ops runs once for each backend that can run on this machine, on its device."""

import pytest

from tests._support import devices
from vt_fast import backends

USABLE = [name for name, reason in backends.report() if reason is None]


def pytest_generate_tests(metafunc):
    """What is about no device, or about float64, is not repeated on a GPU."""
    only_cpu = metafunc.definition.get_closest_marker("on_cpu") is not None
    names = [name for name in USABLE if not (only_cpu and devices.on_gpu(name))]
    metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture(autouse=True)
def backend(request):
    """The backend that calls get; tensors are made on its device."""
    with devices.preferring(request.param), devices.factories_on(request.param):
        yield request.param

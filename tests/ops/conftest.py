"""Tests of the ops run once for each backend that this machine can run, on the backend's device.

Those marked ``one_backend`` run once, on a GPU where there is one. A test may also parametrise ``backend``
itself.
"""

import pytest

from tests._support import devices


def pytest_generate_tests(metafunc):
    """Parametrise ``backend``. Tests that need no device or need float64 are not repeated on a GPU."""
    marks = {mark.name: mark for mark in metafunc.definition.iter_markers()}
    if any("backend" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")):
        return
    names = [name for name in devices.USABLE if not ("on_cpu" in marks and devices.on_gpu(name))]
    if "one_backend" in marks:
        names = sorted(names, key=devices.on_gpu, reverse=True)[:1]
    metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture(autouse=True)
def backend(request):
    """The backend that calls get; tensors are made on its device."""
    with devices.preferring(request.param), devices.factories_on(request.param):
        yield request.param

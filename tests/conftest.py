"""Settings for every test, and which of them need a GPU."""

import os

import pytest
import torch

from tests._support import devices

# Scripts, which --doctest-modules would import and so run.
collect_ignore_glob = ["cases/*"]

# What cuBLAS wants for the same bits each time; it looks once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by marker
def pytest_collection_modifyitems(items):
    """Mark what runs on a GPU: ``gpu``, or ``gpu_slow`` and ``slow`` where a cover leaves it out."""
    reason = devices.missing()
    for item in items:
        if not needs_gpu(item):
            continue
        if in_cover(item):
            item.add_marker(pytest.mark.gpu)
        else:
            item.add_marker(pytest.mark.gpu_slow)
            item.add_marker(pytest.mark.slow)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def needs_gpu(item):
    """What lies in tests/gpu, and on a machine with a GPU all that is about the backend "triton"."""
    parts = item.path.parts
    if "gpu" in parts[-2:-1]:
        return True
    if item.get_closest_marker("on_cpu"):
        return False
    about = parts[-2] == "triton" or (
        hasattr(item, "callspec") and item.callspec.params.get("backend") == "triton"
    )
    return about and devices.on_gpu("triton")


def in_cover(item):
    """Of the cases of a test marked one_in(n), those whose indices add up to a multiple of n.

    So each two values of different parameters still meet somewhere, where there are n of each. Nothing of
    tests/triton, which is about settings that few calls get.
    """
    if item.path.parts[-2] == "triton":
        return False
    mark = item.get_closest_marker("one_in")
    if mark is None:
        return True
    given = item.callspec.params
    return sum(index(*each.args, given) for each in item.iter_markers("parametrize")) % mark.args[0] == 0


def index(names, cases, given):
    """Which case of a parametrize mark a test was given. What pytest counts depends on its version."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    wanted = tuple(given[name] for name in names)
    for number, case in enumerate(cases):
        if hasattr(case, "marks"):  # a pytest.param
            case = case.values
        elif len(names) == 1:
            case = (case,)
        if tuple(case) == wanted:
            return number
    raise LookupError(f"{wanted} is none of the cases of {names}")


@pytest.fixture(autouse=True)
def nan_in_uninitialised_memory():
    """A result that was not written is NaN, not what happened to lie there."""
    # It also fills new memory. On a GPU some of plain PyTorch has no deterministic kernel.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_thread():
    """PyTorch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random numbers in each run and in any order of the tests."""
    torch.manual_seed(0)

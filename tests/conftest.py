"""Settings for every test, and which of them need a GPU."""

import os

import pytest
import torch

from tests._support import devices

# Scripts, which --doctest-modules would import and so run.
collect_ignore_glob = ["cases/*"]

# cuBLAS needs this to be deterministic, and reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by marker
def pytest_collection_modifyitems(items):
    """Mark tests that run on a GPU: ``gpu``, or ``gpu_slow`` and ``slow`` where ``one_in`` omits a case."""
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
    """Whether a test is in tests/gpu or, on a machine with a GPU, is about a backend for GPUs."""
    parts = item.path.parts
    if "gpu" in parts[-2:-1]:
        return True
    if item.get_closest_marker("on_cpu"):
        return False
    about = parts[-2] if parts[-2] in ("triton", "cuda") else None
    if about is None and hasattr(item, "callspec"):
        about = item.callspec.params.get("backend")
    return isinstance(about, str) and devices.on_gpu(about)


def in_cover(item):
    """Whether the indices of a case add up to a multiple of n, if its test is marked one_in(n).

    So each two values of different parameters still meet in a case, where there are n of each. False in
    tests/triton, which tests settings that few calls get.
    """
    if item.path.parts[-2] == "triton":
        return False
    mark = item.get_closest_marker("one_in")
    if mark is None:
        return True
    given = item.callspec.params
    return sum(index(*each.args, given) for each in item.iter_markers("parametrize")) % mark.args[0] == 0


def index(names, cases, given):
    """The index of a test's case in a parametrize mark; pytest's own depends on its version."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    wanted = tuple(given[name] for name in names)
    for number, case in enumerate(cases):
        if hasattr(case, "marks"):  # a pytest.param
            case = case.values
        elif len(names) == 1:
            case = (case,)
        if tuple(case) == wanted:
            return number
    raise LookupError(f"{wanted} is not a case of {names}")


@pytest.fixture(autouse=True)
def nan_in_uninitialised_memory():
    """Uninitialised memory is NaN, so that an element that is not written is noticed."""
    # It also fills new memory. On a GPU some of plain PyTorch has no deterministic kernel.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    poison = getattr(torch.ops.vt_fast_cpu, "poison_results", None)  # what the library allocates
    if poison is not None:
        poison(True)
    yield
    torch.use_deterministic_algorithms(False)
    if poison is not None:
        poison(False)


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


def pytest_runtest_logfinish():
    """After a fault on a GPU nothing works in the process: it ends, and pytest-xdist starts another one."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        pytest.exit(f"the GPU does nothing more for this process: {error}", returncode=1)

"""Where the tests of a backend run, and what is asked of it there.

Tests of the backends "triton" and "cuda" run on the GPU where there is one. VT_FAST_TESTS_PRETEND_GPU=1, with
TRITON_INTERPRET=1, runs those that need no CUDA on the CPU in Triton's interpreter instead, to check the
tests themselves: small, but with all else as it would be on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from vt_fast import backends
from vt_fast.ops import PROJECT, PROJECT_TOKENIZE, TOKENIZE
from vt_fast.ops.library import Pass, chooser

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
PRETENDED = _INTERPRETED and os.environ.get("VT_FAST_TESTS_PRETEND_GPU", "0") == "1"


def missing(backend: str = "triton") -> str | None:
    """Why a backend for GPUs cannot run on one here, or None."""
    if backend == "cuda":
        return dict(backends.report())["cuda"]
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if PRETENDED:
        return None
    if _INTERPRETED:
        return "TRITON_INTERPRET=1 runs the kernels on the CPU"
    return None if torch.cuda.is_available() else "torch finds no CUDA or ROCm device"


GPU = "cuda" if torch.cuda.is_available() and not _INTERPRETED else "cpu"


# The backends that can run here.
USABLE = tuple(name for name, reason in backends.report() if reason is None)


def on_gpu(backend: str) -> bool:
    """Whether a backend's tests run on a GPU, or as if."""
    return backend in ("triton", "cuda") and missing(backend) is None


def of(backend: str) -> str:
    """The type of device that a backend's tests run on."""
    return GPU if on_gpu(backend) else "cpu"


def dtypes(backend: str) -> tuple[torch.dtype, ...]:
    """What it computes in there, the widest first."""
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    return narrow if on_gpu(backend) else (torch.float64, *narrow)


def truncates(backend: str, dtype: torch.dtype) -> bool:
    """Whether numbers are cut off there and not rounded: the interpreter does that in bfloat16."""
    return backend == "triton" and _INTERPRETED and dtype == torch.bfloat16


def backend() -> str:
    """The backend under test: the one that calls get first."""
    return backends.report()[0][0]


@contextlib.contextmanager
def on_cpu(implementation: Callable[[Pass], Callable[..., object]]) -> Iterator[None]:
    """Within, the public ops do this on a CPU, not what the compiled library does."""
    library = torch.library.Library("vt_fast", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for op in (*TOKENIZE.passes, *PROJECT.passes, *PROJECT_TOKENIZE.passes):
            library.impl(op.name, implementation(op), "CPU")
    try:
        yield
    finally:
        library._destroy()


def choosing_in_python() -> contextlib.AbstractContextManager[None]:
    """Within, the choosers in Python are in charge on a CPU too."""
    return on_cpu(chooser)


@contextlib.contextmanager
def preferring(backend: str) -> Iterator[None]:
    """Within, calls that name no backend get this one, where it can do them."""
    others = dict(backends._REASONS)
    first = {backend: others.pop(backend)}
    if PRETENDED and on_gpu(backend):
        others["cpu"] = "not for the tensors of a GPU"
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(backends, "_REASONS", first | others))
        if backend not in backends.NATIVE:
            stack.enter_context(choosing_in_python())
        yield


@contextlib.contextmanager
def factories_on(backend: str) -> Iterator[None]:
    """Within, tensors are made on the device of a backend's tests."""
    if not on_gpu(backend):
        yield
        return
    torch.set_default_device(GPU)
    try:
        yield
    finally:
        torch.set_default_device(None)

"""Compiles kernels before they are launched, in several processes: Triton compiles one at a time.

The results go to Triton's cache on disk, where a launch finds them.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.jit import MockTensor

from vt_fast.backends.triton.schedule import observed


class Operand(MockTensor):  # type: ignore[misc]
    """What the compiled code depends on of a tensor: dtype and size. It is aligned as allocators align."""

    def __init__(self, dtype: torch.dtype, size: int) -> None:
        super().__init__(dtype)
        self.size = size

    def ptr_range(self) -> int:
        """Bytes: AMD's backend uses 32-bit offsets into small tensors."""
        return self.size


class Request(NamedTuple):
    """A kernel's name and the arguments of a launch."""

    module: str
    name: str
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @classmethod
    def of(cls, kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> Request:
        """Of a launch's arguments."""
        return cls(kernel.fn.__module__, kernel.fn.__name__, tuple(map(_operand, arguments)), constants)

    @property
    def kernel(self) -> Any:
        """The kernel itself."""
        return getattr(import_module(self.module), self.name)

    def compiled(self) -> Any:
        """The compiled kernel for the current target, from Triton's cache or anew."""
        return self.kernel.warmup(*self.arguments, grid=(1,), **self.constants)


def requests(call: Callable[[], Any]) -> list[Request]:
    """The kernels that a call would launch. Its operands may be meta tensors."""
    found: list[Request] = []

    def observe(
        kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        found.append(Request.of(kernel, arguments, constants))

    with observed(observe):
        call()
    return found


def _operand(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Operand(value.dtype, value.untyped_storage().nbytes())
    return type(value)(*map(_operand, value)) if isinstance(value, tuple) else value


def current_target() -> Any:
    """The current GPU's target."""
    return triton.runtime.driver.active.get_current_target()


class Ahead:
    """A pool of processes that compile kernels in the order requested. Leaving the context ends them.

    Args:
        target: what to compile for, see :func:`current_target`. The processes use no GPU.
        jobs: the number of processes, at least 1.
    """

    def __init__(self, target: Any, jobs: int) -> None:
        # Spawned: a process that has threads or uses a GPU must not be forked.
        self._pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(target,)
        )
        self._begun: dict[bytes, Future[str | None]] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def compile(self, those: Sequence[Request]) -> list[Future[str | None]]:
        """Start compiling, each request once. A result is None, or why the kernel could not be compiled."""
        return [self._once(each) for each in those]

    def _once(self, request: Request) -> Future[str | None]:
        key = pickle.dumps(request)
        if key not in self._begun:
            self._begun[key] = self._submit(request)
        return self._begun[key]

    def _submit(self, request: Request) -> Future[str | None]:
        try:
            return self._pool.submit(_compile, request)
        except BrokenProcessPool as error:
            broken: Future[str | None] = Future()
            broken.set_exception(error)
            return broken


def finished(compiling: Sequence[Future[str | None]]) -> list[str]:
    """Wait, and return why kernels could not be compiled.

    Callers may ignore it: a launch compiles again, and fails itself.
    """
    wait(compiling)
    return [reason for reason in map(_reason, compiling) if reason is not None]


def _reason(compiling: Future[str | None]) -> str | None:
    try:
        return compiling.result()
    except Exception as error:  # a killed process breaks the whole pool
        return f"{type(error).__name__}: {error}"


def processes() -> int:
    """One process per available CPU, less the one that launches."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available - 1)


class _Driver:
    """The part of a driver that compiling uses; it touches no GPU."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_device(self) -> Any:
        """Triton caches compiled kernels by device, so each target is one."""
        return self._target

    def get_current_stream(self, device: Any) -> int:
        """Unused."""
        return 0

    def get_current_target(self) -> Any:
        """The target."""
        return self._target


@contextmanager
def compiling_for(target: Any) -> Iterator[None]:
    """Within, Triton compiles for this target, and nothing can be launched."""
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver._active = before


def _begin(target: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the process that waits
    triton.runtime.driver.set_active(_Driver(target))


def _compile(request: Request) -> str | None:
    try:
        request.compiled()
    except Exception as error:  # compilers raise anything
        return f"{request.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None

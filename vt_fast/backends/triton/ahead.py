"""Kernels compiled before they are launched, in processes of their own: Triton compiles one after another.

What they compile is in Triton's cache on disk, where the launch finds it.
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

from vt_fast.backends.triton.launcher import observed


class Operand(MockTensor):  # type: ignore[misc]
    """What a kernel's code depends on of a tensor; its memory begins where the allocator lets it begin."""

    def __init__(self, dtype: torch.dtype, size: int) -> None:
        super().__init__(dtype)
        self.size = size

    def ptr_range(self) -> int:
        """Bytes; AMD's offsets may be shorter where they are few."""
        return self.size


class Request(NamedTuple):
    """A kernel's name, and what it would be launched with."""

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
        """What Triton makes of it for the current target, from its cache or anew."""
        return self.kernel.warmup(*self.arguments, grid=(1,), **self.constants)


def requests(call: Callable[[], Any]) -> list[Request]:
    """The kernels that a call would launch. Tensors without data will do for its operands."""
    found: list[Request] = []

    def observe(
        kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        found.append(Request.of(kernel, arguments, constants))

    with observed(observe):
        call()
    return found


def _operand(value: Any) -> Any:
    return Operand(value.dtype, value.untyped_storage().nbytes()) if isinstance(value, Tensor) else value


def current_target() -> Any:
    """What Triton compiles for on the current GPU."""
    return triton.runtime.driver.active.get_current_target()


class Ahead:
    """Processes that compile, in the order in which they are asked to; leaving the context ends them.

    Args:
        target: what they compile for, see :func:`current_target`. They use no GPU themselves.
        jobs: how many they are, at least 1.
    """

    def __init__(self, target: Any, jobs: int) -> None:
        # Fresh ones: a process with threads, or one that uses a GPU, cannot be copied.
        self._pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(target,)
        )
        self._begun: dict[bytes, Future[str | None]] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def compile(self, those: Sequence[Request]) -> list[Future[str | None]]:
        """Begin to compile, each once, and return. A result is None, or why it could not be compiled."""
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
    """Wait, and return the reasons of those that could not be compiled.

    What they are does not matter: the launch compiles again, and fails itself.
    """
    wait(compiling)
    return [reason for reason in map(_reason, compiling) if reason is not None]


def _reason(compiling: Future[str | None]) -> str | None:
    try:
        return compiling.result()
    except Exception as error:  # a process that was killed takes all others with it
        return f"{type(error).__name__}: {error}"


def processes() -> int:
    """How many are worth having beside the one that launches."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available - 1)


class _Driver:
    """All that is asked of a driver in order to compile: no GPU is touched."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_device(self) -> Any:
        """Kernels keep what was compiled by device, so each target is one."""
        return self._target

    def get_current_stream(self, device: Any) -> int:
        """None is used."""
        return 0

    def get_current_target(self) -> Any:
        """What is compiled for."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    triton.runtime.driver.set_active(_Driver(target))


def _compile(request: Request) -> str | None:
    try:
        request.compiled()
    except Exception as error:  # a compiler's errors are of any kind
        return f"{request.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None

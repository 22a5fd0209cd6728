"""Where all kernels are launched, or handed to whoever wants to know what would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from triton.runtime.errors import OutOfResources

__all__ = ["Observer", "OutOfResources", "launch", "observed"]

# (kernel, grid, positional arguments, constants and options)
Observer: TypeAlias = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]

_observer: Observer | None = None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the current stream.

    Raises:
        OutOfResources: the device has too little shared memory for it; nothing was launched.
    """
    if _observer is not None:
        _observer(kernel, grid, arguments, constants)
        return
    kernel[grid](*arguments, **constants)


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Within, nothing is launched: the observer is told instead. Meta tensors will do then."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before

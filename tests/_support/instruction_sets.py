"""The instruction sets that the kernels are compiled for and this machine supports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from vt_fast.backends import cpu
from vt_fast.backends.cpu import library


def supported() -> list[str]:
    """Their names, the baseline first; none if the kernels are not built."""
    if cpu.unavailable() is not None:
        return []
    return library.instruction_sets(supported=True)


def choose(name: str | None) -> None:
    """Run the kernels on this one from now on; None: on the best."""
    assert library.choose(name), name


def each() -> Iterator[str]:
    """Choose each in turn, then the best again."""
    try:
        for name in supported():
            choose(name)
            yield name
    finally:
        choose(None)


def on_each(function: Callable[..., None]) -> Callable[..., None]:
    """Runs a check on each, and names the one on which it failed."""

    @functools.wraps(function)
    def checks(*args: Any, **kwargs: Any) -> None:
        for name in each():
            try:
                function(*args, **kwargs)
            except AssertionError as error:
                raise AssertionError(f"on {name}: {error}") from error

    return checks

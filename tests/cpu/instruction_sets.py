"""Walking through the instruction sets that the kernels are compiled for and this machine supports."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from vt_fast.backends import cpu


def supported() -> list[str]:
    """Their names, the plainest first; none where the kernels are not built."""
    if cpu.unavailable() is not None:
        return []
    try:
        return list(_facts().supported())
    except ImportError:
        return []


def choose(name: str | None) -> None:
    """Let the kernels run on this one from now on; None: the best."""
    assert _facts().choose(name), name


def each() -> Iterator[str]:
    """Choose one after the other, then the best again."""
    try:
        for name in supported():
            choose(name)
            yield name
    finally:
        choose(None)


def on_each(function: Callable[..., None]) -> Callable[..., None]:
    """A check that is made on each, and says on which one it failed."""

    @functools.wraps(function)
    def checks(*args: Any, **kwargs: Any) -> None:
        for name in each():
            try:
                function(*args, **kwargs)
            except AssertionError as error:
                raise AssertionError(f"on {name}: {error}") from error

    return checks


def _facts() -> Any:
    return importlib.import_module("vt_fast._native.build_facts")

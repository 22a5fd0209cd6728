"""The implementations of the ops: which there are, which can run here, and which one a call gets.

A backend is a module with ``tokenize``, ``project``, ``project_tokenize``, their ``*_backward`` and
``unavailable() -> str | None``, the reason why it cannot run on this machine. To add one, add a line
to ``_MODULES``.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

# In the order in which backend=None tries them.
_MODULES = {"torch": "vt_fast.backends.eager"}

NAMES = tuple(_MODULES)


@functools.cache
def load(name: str) -> Any:
    """The module of a backend, imported on first use."""
    return importlib.import_module(_MODULES[name])


def report() -> list[tuple[str, str | None]]:
    """Each backend with None if it can run on this machine, otherwise the reason why not.

    Example:
        >>> dict(report())["torch"] is None
        True
    """
    return [(name, load(name).unavailable()) for name in NAMES]


# To a compiler the choice is a constant of the call: it must not look into imports and probes.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(backend: str | None) -> str:
    """The backend of a call: the one asked for, which never falls back, or the first that can run.

    Raises:
        TypeError: ``backend`` is no string.
        ValueError: it is not known.
        RuntimeError: it cannot run here; the message says why.
    """
    if backend is None:
        return _default()
    if not isinstance(backend, str):
        raise TypeError(f"`backend` must be None or a string, got {type(backend).__name__}")
    if backend not in _MODULES:
        known = ", ".join(f'"{name}"' for name in NAMES)
        raise ValueError(f'`backend` must be None or one of {known}, got "{backend}"')
    reason = load(backend).unavailable()
    if reason is not None:
        raise RuntimeError(f'`backend="{backend}"` is not available here: {reason}')
    return backend


def _default() -> str:
    return next(name for name in NAMES if load(name).unavailable() is None)

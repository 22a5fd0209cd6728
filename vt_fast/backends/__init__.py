"""The implementations of the ops: which exist, which can run here, and which one a call gets.

A backend is a module with the functions of :class:`vt_fast.backends.contract.Backend`. To add one, add
a line to ``_MODULES``. All of them are imported with the first op, so importing one must be cheap and must
not initialise a device.
"""

from __future__ import annotations

import importlib
from typing import cast

from vt_fast.backends.contract import Backend, Call

# In the order in which backend=None tries them. The last one takes every call.
_MODULES = {
    "cpu": "vt_fast.backends.cpu",
    "triton": "vt_fast.backends.triton",
    "torch": "vt_fast.backends.eager",
}

NAMES = tuple(_MODULES)

_BACKENDS = {name: cast(Backend, importlib.import_module(module)) for name, module in _MODULES.items()}

# Computed once, so that torch.compile sees the choice of a backend as constants.
_REASONS: dict[str, str | None] = {name: backend.unavailable() for name, backend in _BACKENDS.items()}


def load(name: str) -> Backend:
    """The module of a backend."""
    return _BACKENDS[name]


def report() -> list[tuple[str, str | None]]:
    """Each backend with None if it can run on this machine, otherwise the reason why not.

    Example:
        >>> dict(report())["torch"] is None
        True
    """
    return list(_REASONS.items())


def choose(backend: str | None, call: Call) -> str:
    """The backend of a call: the named one, which never falls back, or the first that takes the call.

    Raises:
        TypeError: ``backend`` is no string.
        ValueError: it is unknown, or it refuses this call; the message says why.
        RuntimeError: it cannot run here; the message says why.
    """
    if backend is None:
        return next(
            name
            for name, reason in _REASONS.items()
            if reason is None and _BACKENDS[name].refuses(call) is None
        )
    if not isinstance(backend, str):
        raise TypeError(f"`backend` must be None or a string, got {type(backend).__name__}")
    if backend not in _REASONS:
        known = ", ".join(f'"{name}"' for name in _REASONS)
        raise ValueError(f'`backend` must be None or one of {known}, got "{backend}"')
    reason = _REASONS[backend]
    if reason is not None:
        raise RuntimeError(f'`backend="{backend}"` is not available here: {reason}')
    reason = _BACKENDS[backend].refuses(call)
    if reason is not None:
        raise ValueError(f'`backend="{backend}"` cannot do this call: {reason}')
    return backend

"""The implementations of the ops: which exist, which can run here, and which one a call gets.

A backend is a module with the functions of :class:`vt_fast.backends.contract.Backend`. To add one, add
a line to ``_MODULES``. All of them are imported with the first op, so importing one must be cheap and must
not initialise a device.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, cast

from vt_fast.backends.contract import (
    Backend,
    Call,
    CannotRunError,
    Tokenize,
    TokenizeBackward,
    row_count,
    switches,
)
from vt_fast.backends.cpu import library
from vt_fast.backends.cuda import library as cuda_library
from vt_fast.layout import channel_count

__all__ = ["NAMES", "NATIVE", "CannotRunError", "choose", "give_up", "load", "report"]

# In the order in which backend=None tries them. The last one takes every call.
_MODULES = {
    "cpu": "vt_fast.backends.cpu",
    "cuda": "vt_fast.backends.cuda",
    "triton": "vt_fast.backends.triton",
    "torch": "vt_fast.backends.eager",
}

NAMES = tuple(_MODULES)

_BACKENDS = {name: cast(Backend, importlib.import_module(module)) for name, module in _MODULES.items()}

# The backends whose own ops are in a compiled library. Loading one may have failed. That of the backend "cpu"
# also defines the ops.
NATIVE = tuple(
    name for name, loaded in (("cpu", library.loaded()), ("cuda", cuda_library.load() is None)) if loaded
)

# Computed once, so that torch.compile sees the choice of a backend as constants.
_REASONS: dict[str, str | None] = {name: backend.unavailable() for name, backend in _BACKENDS.items()}


# Calls that a backend should have taken and could not run.
_GIVEN_UP: set[tuple[Any, ...]] = set()


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


def choose(backend: str | None, call: Call, *, after: str | None = None) -> str:
    """The backend of a call: the named one, which never falls back, or the first that takes the call.

    ``after``: the first of those that come after this one.

    Raises:
        TypeError: ``backend`` is no string.
        ValueError: it is unknown, or it refuses this call; the message says why.
        RuntimeError: it cannot run here; the message says why.
    """
    if backend is None:
        names = list(_REASONS)
        return next(
            name
            for name in names[names.index(after) + 1 if after in names else 0 :]
            if _REASONS[name] is None
            and _BACKENDS[name].refuses(call) is None
            and not (_GIVEN_UP and _kind(name, call) in _GIVEN_UP)
        )
    if not isinstance(backend, str):
        raise TypeError(f"`backend` must be None or a string, got {type(backend).__name__}")
    if backend not in _REASONS:
        known = ", ".join(f'"{name}"' for name in NAMES)
        raise ValueError(f'`backend` must be None or one of {known}, got "{backend}"')
    reason = _REASONS[backend]
    if reason is not None:
        raise RuntimeError(f'`backend="{backend}"` is not available here: {reason}')
    reason = _BACKENDS[backend].refuses(call)
    if reason is not None:
        raise ValueError(f'`backend="{backend}"` cannot do this call: {reason}')
    return backend


def give_up(name: str, call: Call, error: CannotRunError) -> None:
    """From now on ``backend=None`` passes such calls to the next backend; says so once."""
    _GIVEN_UP.add(_kind(name, call))
    warnings.warn(
        f'the backend "{name}" cannot run {type(call).__name__} in {call.x.dtype} on {call.x.device}; '
        f"from now on the next one does: {error}",
        RuntimeWarning,
        stacklevel=3,
    )


def _kind(name: str, call: Call) -> tuple[Any, ...]:
    """What decides whether a kernel can be compiled and launched: all but the batch and the map's size."""
    x = call.x
    sizes: tuple[int | None, ...]
    if isinstance(call, Tokenize | TokenizeBackward):
        rows = row_count(call.queries, call.scores, call.offsets)
        sizes = (rows, None if call.values is None else channel_count(call.values))
    else:
        scores, offsets = getattr(call, "scores", None), getattr(call, "offsets", None)
        queries = getattr(call, "queries", None)
        sizes = (row_count(call.keys, scores, offsets), *call.values.shape[-2:])
        sizes += () if queries is None else (queries.shape[-2],)
    return (
        name,
        type(call),
        x.dtype,
        x.device,
        channel_count(x),
        x.stride(2 if x.dim() == 3 else 1) == 1,
        sizes,
        call.num_heads,
        tuple(switches(call)),
    )

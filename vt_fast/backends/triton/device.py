"""What of a device decides how kernels are launched."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Traits(NamedTuple):
    """Which table of settings is for it, its multiprocessors (compute units), a program's shared memory."""

    architecture: str
    processors: int
    shared_bytes: int


# Of what the interpreter runs on, and of tensors without data unless they stand for somewhere else.
_NOWHERE = Traits("none", 4, 1 << 30)
# Bytes of shared memory that a program can have where the driver does not say.
_LEAST_SHARED = 64 << 10

_meta = _NOWHERE


def traits(device: torch.device) -> Traits:
    """A device's."""
    if device.type == "cuda":
        return _of_gpu(device)
    return _meta if device.type == "meta" else _NOWHERE


@contextmanager
def standing_in(for_device: Traits) -> Iterator[None]:
    """Within, tensors without data are as if on such a device."""
    global _meta
    before, _meta = _meta, for_device
    try:
        yield
    finally:
        _meta = before


@functools.cache
def _of_gpu(device: torch.device) -> Traits:
    properties = torch.cuda.get_device_properties(device)
    return Traits(
        _architecture(device),
        int(properties.multi_processor_count),
        int(getattr(properties, "shared_memory_per_block_optin", 0) or _LEAST_SHARED),
    )


def _architecture(device: torch.device) -> str:
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major == 9:
        return "sm_90"
    if major == 10:
        return "sm_100"
    # Those with 100 KB of shared memory: 8.6, 8.9, 12.x.
    return "sm_80" if (major, minor) in ((8, 0), (8, 7)) else "sm_86"

"""What of a device decides how kernels are launched."""

from __future__ import annotations

import functools

import torch

# Multiprocessors that the interpreter pretends to have.
_INTERPRETED_PROCESSORS = 4
# Bytes of shared memory that a program can have where there is no device to ask.
_LEAST_SHARED = 64 << 10


@functools.cache
def architecture(device: torch.device) -> str:
    """The architecture whose table of settings is for this device."""
    if device.type != "cuda":
        return "none"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major == 9:
        return "sm_90"
    if major == 10:
        return "sm_100"
    # Those with 100 KB of shared memory: 8.6, 8.9, 12.x.
    return "sm_80" if (major, minor) in ((8, 0), (8, 7)) else "sm_86"


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors (compute units)."""
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that a program can have."""
    if device.type != "cuda":
        return 1 << 30
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 0) or _LEAST_SHARED)

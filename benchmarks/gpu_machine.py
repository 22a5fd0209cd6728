"""Which GPU a run was made on. Where something cannot be found out it is None."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import machine
from vt_fast import backends

# What nvidia-smi is asked for: what bounds the clocks, and what they were.
_FIELDS = (
    "driver_version",
    "power.limit",
    "power.default_limit",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "clocks.applications.graphics",
    "temperature.gpu",
    "ecc.mode.current",
    "mig.mode.current",
    "utilization.gpu",
)


def describe(index: int = 0) -> dict[str, Any]:
    """What is said of any machine, and ``gpu``: the device, its memory, driver, clocks and power."""
    return {**machine.describe(), "gpu": _facts(index)}


def unusable(index: int) -> str | None:
    """Why no GPU can be measured here, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA or ROCm device; python -m vt_fast info says what there is"
    if not 0 <= index < torch.cuda.device_count():
        return f"--device must be at most cuda:{torch.cuda.device_count() - 1}, got cuda:{index}"
    reason = dict(backends.report())["triton"]
    return None if reason is None else f'the backend "triton" cannot run here: {reason}'


def _facts(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    free, _ = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "free_bytes": free,
        "cache_bytes": getattr(properties, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        **nvidia_smi(index, getattr(properties, "uuid", None)),
    }


def nvidia_smi(index: int, uuid: object = None) -> dict[str, Any]:
    """What nvidia-smi says of a device, or None. It may number devices unlike torch, hence the uuid."""
    name = str(index) if uuid is None else f"GPU-{uuid}"
    return {field.replace(".", "_"): _asked(field, name) for field in _FIELDS}


def _asked(field: str, name: str) -> str | None:
    # One by one: it refuses all for one that it does not know.
    query = (f"--query-gpu={field}", "--format=csv,noheader", f"--id={name}")
    return machine.output("nvidia-smi", *query) or None

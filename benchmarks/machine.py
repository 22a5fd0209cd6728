"""Where and with what a run was made. Everything here may be missing, and is then None."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch.utils.collect_env import get_env_info

from benchmarks.processes import CPU, ROOT
from vt_fast import backends, info

# What nvidia-smi is asked for: what bounds the clocks, and what they were.
_SMI = (
    "driver_version,power.limit,power.default_limit,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "temperature.gpu,ecc.mode.current,utilization.gpu"
)


_OF_LIBRARIES = re.compile("(G?OMP|KMP|MKL|ONEDNN|DNNL|MALLOC|THP)_")


def describe(device: str = CPU) -> dict[str, Any]:
    """Versions, CPU, caches, memory and settings of the system; ``gpu``, where one is measured."""
    collected = info.collect()
    for facts in (collected["kernels"], collected["cuda_kernels"]):
        if isinstance(facts, dict) and Path(facts.get("library", "")).is_absolute():
            del facts["library"]
    system = get_env_info()._asdict()
    lines = [line.partition(":") for line in (system["cpu_info"] or "").splitlines()]
    kept = ("Thread(s)", "Core(s)", "Socket(s)", "Hypervisor", "L1", "L2", "L3", "NUMA")
    found = {
        **collected,
        "cpu": _cpu(),
        "topology": {key: value.strip() for key, _, value in lines if key.startswith(kept)},
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": list(os.getloadavg()),
        # What decides about threads and memory.
        "environment": {name: value for name, value in os.environ.items() if _OF_LIBRARIES.match(name)},
        "system": {key: system[key] for key in ("os", "libc_version", "gcc_version", "clang_version")},
    }
    return found if device == CPU else found | {"gpu": _gpu(torch.device(device).index or 0)}


def commit() -> dict[str, Any] | None:
    """Hash, and whether the tree differs from it (results aside).

    Outside a git checkout: the environment's VT_FAST_COMMIT, of which it is not known whether the tree
    differs, or None where that is not set.
    """
    head = output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changes = output("git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":!benchmarks/results")
    if head is not None and changes is not None:
        return {"hash": head, "dirty": bool(changes)}
    told = os.environ.get("VT_FAST_COMMIT")
    return {"hash": told, "dirty": None} if told else None


def unusable(device: str) -> str | None:
    """Why a device cannot be measured here, or None."""
    if device == CPU:
        return None
    if not torch.cuda.is_available():
        return "torch finds no CUDA or ROCm device; python -m vt_fast info says what there is"
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        return f"--device must be at most cuda:{torch.cuda.device_count() - 1}, got {device}"
    reason = dict(backends.report())["triton"]
    return None if reason is None else f'the backend "triton" cannot run here: {reason}'


def output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> dict[str, Any]:
    try:
        import cpuinfo
    except ImportError:
        return {"brand_raw": platform.processor() or platform.machine()}
    found = cpuinfo.get_cpu_info()
    keys = ("brand_raw", "family", "model", "stepping", "hz_advertised_friendly", "hz_actual_friendly")
    return {key: found.get(key) for key in keys}


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    # nvidia-smi may number devices unlike torch.
    uuid = getattr(properties, "uuid", None)
    name = str(index) if uuid is None else f"GPU-{uuid}"
    told = output("nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader", f"--id={name}")
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "free_bytes": torch.cuda.mem_get_info(index)[0],
        "cache_bytes": getattr(properties, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        **dict(zip(_SMI.split(","), (told or "").split(", "), strict=False)),
    }

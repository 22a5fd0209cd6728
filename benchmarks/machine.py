"""Where and with what a run was made. Everything here may be missing, and then says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_CPU = Path("/sys/devices/system/cpu")


def describe() -> dict[str, Any]:
    """CPU, caches, memory, settings of the system, versions, and the commit that was measured."""
    from vt_fast import info

    return {
        **info.collect(),
        "kernels": _without_paths(info.collect()["kernels"]),
        "caches": _caches(),
        "governor": _read(_CPU / "cpu0/cpufreq/scaling_governor"),
        "huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "memory_bytes": _memory(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "compiler": _compiler(),
        "commit": commit(),
    }


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


def _without_paths(kernels: Any) -> Any:
    """What is said of the compiled kernels, but where they lie."""
    return {k: v for k, v in kernels.items() if k != "library"} if isinstance(kernels, dict) else None


def output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _compiler() -> str | None:
    """The first line of the compiler that torch.compile would call."""
    name = os.environ.get("CXX", "g++")
    found = output(name, "--version") if shutil.which(name) else None
    return found.splitlines()[0] if found else None


def _caches() -> dict[str, str]:
    """Size of each cache of the first CPU, by level and type."""
    found = {}
    for folder in sorted(_CPU.glob("cpu0/cache/index*")):
        level, kind, size = (_read(folder / name) for name in ("level", "type", "size"))
        found[f"L{level} {kind}"] = f"{size}, shared by CPUs {_read(folder / 'shared_cpu_list')}"
    return found


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None

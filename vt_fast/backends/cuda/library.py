"""Loads the library with the CUDA kernels once; if that fails, says why and what to do about it."""

from __future__ import annotations

import ctypes
import functools
import json
from pathlib import Path
from typing import Any

import torch

from vt_fast.backends.cpu.library import FOLDER, build_record
from vt_fast.backends.cuda import settings

_LIBRARY = "libvt_fast_cuda.so"


@functools.cache
def load(folder: Path = FOLDER) -> str | None:
    """Load the library in ``folder``, or return why that failed."""
    built = _built(folder)
    if "reason" in built:
        return f"the CUDA kernels are not built: {built['reason']}"
    path = folder / _LIBRARY
    if not path.exists():
        return "the CUDA kernels are not built; install nvcc and run `make native` in vt_fast's source tree"
    try:
        found = settings.in_files()
        torch.ops.load_library(path)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"the CUDA kernels do not load in torch {torch.__version__} ({error.__cause__ or error})"
    settings.use(handle(folder), found)
    return None


def handle(folder: Path = FOLDER) -> ctypes.CDLL:
    """The library's functions in C."""
    return ctypes.CDLL(str(folder / _LIBRARY))


def missing_architecture(major: int, minor: int) -> str | None:
    """Why the kernels do not run on a GPU of this compute capability, or None."""
    built = _built(FOLDER)
    if _runs_on(major, minor, built.get("architectures", []), built.get("ptx")):
        return None
    names = ", ".join(f"sm_{name}" for name in built.get("architectures", []))
    return (
        f"the CUDA kernels are built for {names}, and this GPU is sm_{major}{minor}: build them with "
        f"VT_FAST_CUDA_ARCH={major}{minor}"
    )


def _runs_on(major: int, minor: int, architectures: list[str], ptx: str | None) -> bool:
    """Machine code runs on later GPUs of its generation, or on its own alone (90a); PTX on all later ones."""
    for name in architectures:
        number = int(name.rstrip("af"))
        exact = not name.isdigit()
        if number // 10 == major and (number % 10 == minor if exact else number % 10 <= minor):
            return True
    return ptx is not None and int(ptx) <= 10 * major + minor


def facts() -> dict[str, str]:
    """Facts about the library, by name; if it is not loaded, only the reason."""
    reason = load()
    if reason is not None:
        return {"library": f"none: {reason}"}
    built = _built(FOLDER)
    ptx = f", and PTX for later ones than sm_{built['ptx']}" if built.get("ptx") else ""
    return {
        "library": str(FOLDER / _LIBRARY),
        "compiled for": ", ".join(f"sm_{name}" for name in built.get("architectures", [])) + ptx,
        "compiler": built.get("compiler", "not known"),
        "settings": json.loads(settings.FILE.read_text())["source"],
        "proven": "by tests on an emulator; at commit 9649c69 on an H100 (CUDA 13.0, driver 580)",
    }


def _built(folder: Path) -> dict[str, Any]:
    found = build_record(folder).get("cuda", {})
    return found if isinstance(found, dict) else {}

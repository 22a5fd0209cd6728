"""Loads the compiled library once; if that fails, says why and what to do about it."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parents[2] / "_native"
_LIBRARY = "libvt_fast_cpu.so"
_RECORD = "build.json"

_AGAIN = "run `pip install --no-build-isolation .` in vt_fast's source tree"


@functools.cache
def loaded() -> bool:
    """Whether the library is there, so that its ops are defined. The first call loads it."""
    return load(FOLDER) is None


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot run here, or None. The first call loads them."""
    reason = load(FOLDER)
    if reason is not None:
        return reason
    try:
        _build_facts().chosen()
    except ImportError:
        return None  # build_facts was built for another Python; the kernels do not depend on Python
    except RuntimeError as error:
        return str(error)
    return None


def load(folder: Path) -> str | None:
    """Load the library in ``folder``, where native_build/command.py puts it, or return why that failed."""
    record = build_record(folder)
    if "reason" in record:
        return f"the kernels are not built: {record['reason']}"
    path = folder / _LIBRARY
    if not path.exists():
        if record:
            return f"the kernels were built, but {path} is missing; {_AGAIN}"
        return "the kernels are not built; run `make native` in vt_fast's source tree"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        cause = error.__cause__ or error  # newer versions of torch have the loader's message there
        built = {"torch": "?", "oldest_torch": "?", "compiler": "an unknown compiler"} | record
        return (
            f"the kernels do not load: they were built with torch {built['torch']} and {built['compiler']}, "
            f"for torch {built['oldest_torch']} or later, and this is torch {torch.__version__} ({cause}); "
            f"with a torch that fits, {_AGAIN}"
        )
    return None


def facts() -> dict[str, str]:
    """Facts about the library, by name; if it is not loaded, only the reason.

    Raises:
        ImportError: it is loaded, but its module build_facts was built for another Python.
    """
    reason = load(FOLDER)
    if reason is not None:
        return {"library": f"none: {reason}"}
    report = _build_facts()
    try:
        runs = report.chosen()
    except RuntimeError as error:
        runs = f"none: {error}"
    return {
        "library": str(FOLDER / _LIBRARY),
        "compiled for": ", ".join(report.compiled()),
        "supported": ", ".join(report.supported()),
        "runs": runs,
        "compiler": report.compiler(),
        "built with": f"torch {report.torch_of_headers()}, for {report.oldest_torch()} and later",
        "threads": report.threads(),
    }


def build_record(folder: Path) -> dict[str, Any]:
    """The record of the build, or {} if there is none."""
    try:
        found = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _build_facts() -> Any:
    return importlib.import_module("vt_fast._native.build_facts")

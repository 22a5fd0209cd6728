"""Loads the compiled library once; if that fails, says why and what to do about it."""

from __future__ import annotations

import ctypes
import functools
import json
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parents[2] / "_native"
_LIBRARY = "libvt_fast_cpu.so"
_RECORD = "build.json"

# What a library was built with, where it has no record.
_UNKNOWN = {"torch": "?", "oldest_torch": "?", "compiler": "an unknown compiler"}

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
        chosen()
    except (RuntimeError, ImportError) as error:
        return str(error)
    return None


def load(folder: Path) -> str | None:
    """Load the library in ``folder``, where native_build/command.py puts it, or return why that failed."""
    record = build_record(folder)
    if "reason" in record:
        return f"the kernels are not built: {record['reason']}"
    path = folder / _LIBRARY
    if not path.exists():
        if not folder.is_dir():
            return f"the kernels do not load from an archive: install the package, which is in {folder}"
        if record:
            return f"the kernels were built, but {path} is missing; {_AGAIN}"
        return "the kernels are not built; run `make native` in vt_fast's source tree"
    if _is_cut_off(path):
        return f"{path} is damaged: its end is missing; install the package again, or {_AGAIN}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        cause = error.__cause__ or error  # newer versions of torch have the loader's message there
        built = _UNKNOWN | record
        return (
            f"the kernels do not load: they were built with torch {built['torch']} and {built['compiler']}, "
            f"for torch {built['oldest_torch']} or later, and this is torch {torch.__version__} ({cause}); "
            f"with a torch that fits, {_AGAIN}"
        )
    return None


def _is_cut_off(path: Path) -> bool:
    """Whether an ELF library ends before its last part, the table of sections: the loader would crash."""
    with path.open("rb") as file:
        header = file.read(64)
        size = file.seek(0, 2)
    if header[:5] != b"\x7fELF\x02":
        return False  # the loader says what it is
    begin, entry, count = (
        int.from_bytes(header[at : at + length], "little") for at, length in ((40, 8), (58, 2), (60, 2))
    )
    return len(header) < 64 or begin + entry * count > size


def facts() -> dict[str, str]:
    """Facts about the library, by name; if it is not loaded, only the reason."""
    reason = load(FOLDER)
    if reason is not None:
        return {"library": f"none: {reason}"}
    try:
        runs = chosen()
    except RuntimeError as error:
        runs = f"none: {error}"
    except ImportError as error:
        return {"library": f"none: {error}"}
    built = _UNKNOWN | build_record(FOLDER)
    return {
        "library": str(FOLDER / _LIBRARY),
        "compiled for": ", ".join(instruction_sets()),
        "supported": ", ".join(instruction_sets(supported=True)),
        "runs": runs,
        "compiler": built["compiler"],
        "built with": f"torch {built['torch']}, for {built['oldest_torch']} and later",
    }


def instruction_sets(*, supported: bool = False) -> list[str]:
    """Those that the kernels are compiled for, the plainest first; or those of them that can run here."""
    names: str = _functions().vt_fast_cpu_instruction_sets(int(supported)).decode()
    return names.split()


def chosen() -> str:
    """The instruction set that runs.

    Raises:
        RuntimeError: VT_FAST_CPU_ISA names one that cannot.
    """
    error = ctypes.c_char_p()
    name: bytes | None = _functions().vt_fast_cpu_chosen(ctypes.byref(error))
    if name is None:
        raise RuntimeError((error.value or b"").decode())
    return name.decode()


def choose(name: str | None) -> bool:
    """Run another one from now on, None restores the default. False if it cannot run here."""
    return bool(_functions().vt_fast_cpu_choose(None if name is None else name.encode()))


@functools.cache
def _functions() -> ctypes.CDLL:
    """The library's functions in C.

    Raises:
        ImportError: the library was built from other sources.
    """
    library = ctypes.CDLL(str(FOLDER / _LIBRARY))
    try:
        library.vt_fast_cpu_instruction_sets.restype = ctypes.c_char_p
        library.vt_fast_cpu_chosen.restype = ctypes.c_char_p
        library.vt_fast_cpu_choose.argtypes = [ctypes.c_char_p]
        library.vt_fast_cpu_choose.restype = ctypes.c_bool
    except AttributeError as error:
        raise ImportError(
            f"the compiled library is of another version ({error}); {_AGAIN}, or `make native`"
        ) from None
    return library


def build_record(folder: Path) -> dict[str, Any]:
    """The record of the build, or {} if there is none."""
    try:
        found = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

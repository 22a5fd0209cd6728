"""What a build needs, and where it is: a C++ compiler, ninja, pybind11, torch's headers, Python's headers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Its stable ABI is what csrc/torch/cpu_ops.cpp is written for.
OLDEST_TORCH = (2, 11)
# Flags for the plainest processor of a kind. Compilers differ in how they spell it, and some of them take
# the processor that they run on unless told otherwise: `zig c++` does, and so do some distributions' GCC.
_PLAINEST = {"x86_64": ("-march=x86-64", "-march=x86_64"), "aarch64": ("-mcpu=generic",)}

RETRY = "run `pip install --no-build-isolation .` in the source tree again"


class CannotBuildError(Exception):
    """Why the kernels cannot be built: one sentence that says what to do about it."""


@dataclass(frozen=True)
class Toolchain:
    """All that a build needs."""

    compiler: list[str]
    compiler_name: str
    machine: str  # what the compiler compiles for: "x86_64", "aarch64" or "other"
    plainest: list[str]  # the flags that make it compile for the plainest of these
    ninja: str
    torch_version: str
    torch_include: Path
    torch_lib: Path
    python_include: Path
    pybind11_include: Path


def find() -> Toolchain:
    """Look for everything, the most probable absence first.

    Raises:
        CannotBuildError: something is missing.
    """
    if not sys.platform.startswith("linux"):
        raise CannotBuildError(f"the kernels are built on Linux only so far, and this is {sys.platform}")
    torch = _torch()
    torch_version = _torch_version(torch)
    compiler = _compiler()
    macros = _macros(compiler)
    machine = next((name for name in _PLAINEST if f"__{name}__" in macros), "other")
    return Toolchain(
        compiler=compiler,
        compiler_name=_compiler_name(macros),
        machine=machine,
        plainest=_plainest(compiler, machine),
        ninja=_ninja(),
        torch_version=torch_version,
        torch_include=torch / "include",
        torch_lib=torch / "lib",
        python_include=_python_include(),
        pybind11_include=_pybind11_include(),
    )


def _torch() -> Path:
    """The folder of torch, which is not imported: that takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuildError(
            "torch was not there when the package was built (pip builds in isolation unless told not to); "
            f"install torch, ninja, pybind11 and setuptools, then {RETRY}"
        )
    return Path(spec.origin).parent


def _torch_version(torch: Path) -> str:
    oldest = ".".join(map(str, OLDEST_TORCH))
    header = torch / "include" / "torch" / "headeronly" / "version.h"
    text = header.read_text() if header.exists() else ""
    found = re.search(r'#define TORCH_VERSION \\?\s*"([^"]+)"', text)
    if found is None:
        raise CannotBuildError(
            f"the torch in {torch} does not tell its version in {header.name}; install torch {oldest} or "
            f"later, then {RETRY}"
        )
    version = found[1]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise CannotBuildError(
            f"the kernels need torch {oldest} or later and this is {version}; upgrade it, then {RETRY}"
        )
    return version


def _compiler() -> list[str]:
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given
    for name in ("g++", "c++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return [path]
    raise CannotBuildError(
        "no C++ compiler was found (g++, c++ and clang++ were looked for); install one, such as g++, or "
        f"name one in the environment variable CXX, then {RETRY}"
    )


def _macros(compiler: list[str]) -> dict[str, str]:
    """What the compiler says about itself and the processor that it compiles for."""
    shown = " ".join(compiler)
    advice = f"install g++ or name another compiler in the environment variable CXX, then {RETRY}"
    try:
        done = _preprocess(compiler)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"the C++ compiler `{shown}` does not run ({error}); {advice}") from error
    if done.returncode != 0:
        first = next(iter(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
        raise CannotBuildError(f"the C++ compiler `{shown}` does not compile C++17 ({first}); {advice}")
    return dict(re.findall(r"^#define (\w+) (.*)$", done.stdout, flags=re.MULTILINE))


def _preprocess(compiler: list[str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*compiler, "-std=c++17", *flags, "-dM", "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def _compiler_name(macros: dict[str, str]) -> str:
    version = macros.get("__VERSION__", '"of unknown version"').strip('" ')
    return version if "__clang__" in macros else f"GCC {version}"


def _plainest(compiler: list[str], machine: str) -> list[str]:
    """The first spelling that the compiler takes; none where there is no choice to make."""
    for flag in _PLAINEST.get(machine, ()):
        if _preprocess(compiler, flag).returncode == 0:
            return [flag]
    return []


def _ninja() -> str:
    """The binary of the package ninja, which is on no path while its environment is not active; or any."""
    if importlib.util.find_spec("ninja") is not None:
        path = Path(importlib.import_module("ninja").BIN_DIR) / "ninja"
        if path.exists():
            return str(path)
    found = shutil.which("ninja")
    if found is None:
        raise CannotBuildError(f"ninja was not found; run `pip install ninja`, then {RETRY}")
    return found


def _pybind11_include() -> Path:
    if importlib.util.find_spec("pybind11") is None:
        raise CannotBuildError(f"pybind11 was not found; run `pip install pybind11`, then {RETRY}")
    return Path(importlib.import_module("pybind11").get_include())


def _python_include() -> Path:
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise CannotBuildError(
            f"Python's own headers are not in {include}; install them (on Debian and Ubuntu: the package "
            f"python3-dev), then {RETRY}"
        )
    return include

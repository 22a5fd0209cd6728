"""Finds the toolchain: a C++ compiler, ninja and torch's headers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# csrc/torch/cpu_ops.cpp is written for its stable ABI.
OLDEST_TORCH = (2, 11)
# Flags for the baseline processor of an architecture, as different compilers spell them. Without one, some
# compile for the processor that they run on: `zig c++` does, and so does the GCC of some distributions.
_BASELINE = {"x86_64": ("-march=x86-64", "-march=x86_64"), "aarch64": ("-mcpu=generic",)}

RETRY = "run `pip install --no-build-isolation .` in the source tree again"


class CannotBuildError(Exception):
    """Why the kernels cannot be built, and what to do about it, in one sentence."""


@dataclass(frozen=True)
class Toolchain:
    """The tools and headers of a build."""

    compiler: list[str]
    compiler_name: str
    machine: str  # the architecture that the compiler compiles for: "x86_64", "aarch64" or "other"
    baseline: list[str]  # flags that make it compile for that architecture's baseline processor
    ninja: str
    torch_version: str
    torch_include: Path
    torch_lib: Path

    @property
    def is_cross(self) -> bool:
        """Whether the compiler compiles for another machine than this one."""
        return self.machine not in ("other", platform.machine())


def find() -> Toolchain:
    """Find everything; what is missing most often is looked for first.

    Raises:
        CannotBuildError: a part is missing.
    """
    if not sys.platform.startswith("linux"):
        raise CannotBuildError(f"the kernels are built on Linux only, and this is {sys.platform}")
    torch = _torch()
    torch_version = _torch_version(torch)
    compiler = _compiler()
    macros = _macros(compiler)
    machine = next((name for name in _BASELINE if f"__{name}__" in macros), "other")
    return Toolchain(
        compiler=compiler,
        compiler_name=_compiler_name(macros),
        machine=machine,
        baseline=_baseline(compiler, machine),
        ninja=_ninja(),
        torch_version=torch_version,
        torch_include=torch / "include",
        torch_lib=torch / "lib",
    )


def _torch() -> Path:
    """The folder of torch, which is not imported because that takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuildError(
            "torch was not found when the package was built (pip isolates builds by default); "
            f"install torch, ninja and setuptools, then {RETRY}"
        )
    return Path(spec.origin).parent


def _torch_version(torch: Path) -> str:
    oldest = ".".join(map(str, OLDEST_TORCH))
    header = torch / "include" / "torch" / "headeronly" / "version.h"
    text = header.read_text() if header.exists() else ""
    found = re.search(r'#define TORCH_VERSION \\?\s*"([^"]+)"', text)
    if found is None:
        raise CannotBuildError(
            f"the torch in {torch} has no version in {header.name}; install torch {oldest} or "
            f"later, then {RETRY}"
        )
    version = found[1]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise CannotBuildError(
            f"the kernels need torch {oldest} or later, but this is {version}; upgrade it, then {RETRY}"
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
    """The compiler's predefined macros: its version and the architecture that it compiles for."""
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


def _baseline(compiler: list[str], machine: str) -> list[str]:
    """The first spelling that the compiler accepts; no flag for other architectures."""
    for flag in _BASELINE.get(machine, ()):
        if _preprocess(compiler, flag).returncode == 0:
            return [flag]
    return []


def _ninja() -> str:
    """The binary of the package ninja, which is not on the path of an inactive environment; or any other."""
    if importlib.util.find_spec("ninja") is not None:
        path = Path(importlib.import_module("ninja").BIN_DIR) / "ninja"
        if path.exists():
            return str(path)
    found = shutil.which("ninja")
    if found is None:
        raise CannotBuildError(f"ninja was not found; run `pip install ninja`, then {RETRY}")
    return found

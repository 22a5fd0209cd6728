"""The kernels' object files for an architecture: those of the last build, or compiled for the purpose."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from native_build import cuda, toolchain
from native_build.command import OBJECTS
from native_build.cuda import CudaToolchain
from native_build.toolchain import CannotBuildError
from tools.cuda import machine_code

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"


def tools(architecture: str) -> CudaToolchain:
    """Nvcc, set to compile for an architecture.

    Raises:
        RuntimeError: there is no nvcc, or it does not know the architecture.
    """
    before = os.environ.get("VT_FAST_CUDA_ARCH")
    os.environ["VT_FAST_CUDA_ARCH"] = architecture
    try:
        return replace(cuda.find(), architectures=[architecture])
    except CannotBuildError as error:
        raise RuntimeError(str(error)) from error
    finally:
        del os.environ["VT_FAST_CUDA_ARCH"]
        if before is not None:
            os.environ["VT_FAST_CUDA_ARCH"] = before


def objects(architecture: str, kernels: Sequence[tuple[str, str]]) -> list[Path]:
    """An object for each op and type, newer than the sources."""
    built = [ROOT / OBJECTS / "cuda" / f"{op}_{dtype}.o" for op, dtype in kernels]
    newest = max(path.stat().st_mtime for path in [*SOURCES.glob("*.h"), *SOURCES.glob("*.cu")])
    if all(
        path.exists() and path.stat().st_mtime > newest and machine_code.has_code(path, architecture)
        for path in built
    ):
        return built
    return _compile(architecture, kernels)


def _compile(architecture: str, kernels: Sequence[tuple[str, str]]) -> list[Path]:
    folder = Path("build") / "cuda" / f"sm_{architecture}"
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    lines = ["ninja_required_version = 1.5", f"builddir = {folder}"]
    (ROOT / folder / "build.ninja").write_text(
        "\n".join([*lines, *cuda.ninja_lines(tools(architecture), folder)]) + "\n"
    )
    names = [str(folder / f"{op}_{dtype}.o") for op, dtype in kernels]
    jobs = os.environ.get("MAX_JOBS", "")
    command = [
        toolchain.find().ninja,
        "-f",
        str(folder / "build.ninja"),
        *(["-j", jobs] if jobs else []),
        *names,
    ]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise RuntimeError("nvcc did not compile the kernels, see above")
    return [ROOT / name for name in names]

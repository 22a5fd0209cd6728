"""Finds nvcc, chooses the GPU architectures, and has the rules for the CUDA kernels."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from native_build.toolchain import CannotBuildError

OPS = (
    "tokenize",
    "project",
    "project_tokenize",
    "tokenize_backward",
    "project_backward",
    "project_tokenize_backward",
)
TYPES = ("Fp32", "Bf16", "Fp16")

# Where no GPU says which: Ampere and later data-centre GPUs. 90a has machine code for Hopper alone.
_USUAL = ("80", "90a", "100")

# -O3 is nvcc's default for device code. Contracting products and sums is deterministic.
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden"]


@dataclass(frozen=True)
class CudaToolchain:
    """nvcc, and what it compiles for."""

    nvcc: str
    version: tuple[int, int]
    include: Path
    runtime: Path  # the static library
    architectures: list[str]

    @property
    def ptx(self) -> str | None:
        """The architecture whose PTX is included for later GPUs: the latest without a suffix."""
        return max((name for name in self.architectures if name.isdigit()), key=int, default=None)

    @property
    def codes(self) -> list[str]:
        """The flags for nvcc."""
        codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in self.architectures]
        if self.ptx is not None:
            codes.append(f"-gencode=arch=compute_{self.ptx},code=compute_{self.ptx}")
        # Compressed by a quarter to a third; from CUDA 12.8 on.
        return [*codes, *(["-compress-mode=size"] if self.version >= (12, 8) else [])]

    @property
    def record(self) -> dict[str, object]:
        """For the record of a build."""
        compiler = f"nvcc {self.version[0]}.{self.version[1]}"
        return {"compiler": compiler, "architectures": self.architectures, "ptx": self.ptx}


def find() -> CudaToolchain:
    """Find nvcc, and decide what to compile for.

    Raises:
        CannotBuildError: there is no nvcc, or no GPU and no VT_FAST_CUDA_ARCH to say what to compile for.
    """
    if os.environ.get("VT_FAST_CUDA_ARCH", "") == "none":
        raise CannotBuildError("the package was built with VT_FAST_CUDA_ARCH=none")
    nvcc = _nvcc()
    shown = _run([nvcc, "--version"])
    found = re.search(r"release (\d+)\.(\d+)", shown)
    if found is None:
        raise CannotBuildError(f"`{nvcc} --version` does not say which version it is")
    version = (int(found[1]), int(found[2]))
    if version < (12, 0):
        raise CannotBuildError(
            f"the CUDA kernels need nvcc 12.0 or later, and {nvcc} is {found[1]}.{found[2]}"
        )
    root = _root(nvcc)
    return CudaToolchain(
        nvcc, version, _include(root), _runtime(root), _architectures(_run([nvcc, "--list-gpu-arch"]))
    )


def ninja_lines(tools: CudaToolchain, directory: Path) -> list[str]:
    """The rule for nvcc, and one object for each op and dtype."""
    command = shlex.join([tools.nvcc, *FLAGS, *tools.codes]).replace("$", "$$")
    lines = [
        "rule nvcc",
        f"  command = {command} -MD -MF $out.d $definitions -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
    ]
    for op, dtype in kernels():
        lines += [
            f"build {directory / f'{op}_{dtype}.o'}: nvcc csrc/cuda/kernels.cu",
            f"  definitions = -DVT_OP={op} -DVT_TYPE={dtype}",
        ]
    return lines


def kernels() -> list[tuple[str, str]]:
    """Op and dtype of each object."""
    return [(op, dtype) for dtype in TYPES for op in OPS]


def _nvcc() -> str:
    places = [os.environ.get("CUDACXX", "")]
    places += [f"{os.environ[name]}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for place in places:
        path = shutil.which(place) if place else None
        if path is not None:
            return path
    raise CannotBuildError(
        "nvcc was not found (CUDACXX, CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda were looked at)"
    )


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotBuildError(f"`{' '.join(command)}` does not run ({error})") from error


def _root(nvcc: str) -> Path:
    """The toolkit's folder, as nvcc has it: nvcc itself may be a script or a link elsewhere."""
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotBuildError(f"`{' '.join(command)}` does not run ({error})") from error
    found = re.search(r"^#\$ TOP=(.*)$", shown, flags=re.MULTILINE)
    return Path(found[1] if found else Path(nvcc).parents[1]).resolve()


def _include(root: Path) -> Path:
    for folder in (root / "include", *root.glob("targets/*/include")):
        if (folder / "cuda_runtime.h").exists():
            return folder
    raise CannotBuildError(f"cuda_runtime.h was not found in {root}")


def _runtime(root: Path) -> Path:
    for folder in (root / "lib64", root / "lib", *root.glob("targets/*/lib")):
        if (folder / "libcudart_static.a").exists():
            return folder / "libcudart_static.a"
    raise CannotBuildError(f"libcudart_static.a was not found in {root}")


def _architectures(known: str) -> list[str]:
    """Those of VT_FAST_CUDA_ARCH, else of the GPUs here."""
    numbers = re.findall(r"compute_(\d+)", known)
    given = re.split(r"[\s,;]+", os.environ.get("VT_FAST_CUDA_ARCH", "").strip())
    if given == ["all"]:
        return [name for name in _USUAL if name.rstrip("a") in numbers]
    if given != [""]:
        for name in given:
            if (
                not re.fullmatch(r"\d+[af]?", name)
                or name.rstrip("af") not in numbers
                or int(name.rstrip("af")) < 80
            ):
                raise CannotBuildError(
                    f'VT_FAST_CUDA_ARCH must be "all", "none", or architectures from 80 on that nvcc knows, '
                    f'such as "80,90a", got "{name}"'
                )
        return given
    found = []
    if shutil.which("nvidia-smi") is not None:
        try:
            shown = _run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
        except CannotBuildError:
            shown = ""
        found = sorted(
            {line.strip().replace(".", "") for line in shown.splitlines() if line.strip()}, key=int
        )
    found = ["90a" if name == "90" else name for name in found if name in numbers and int(name) >= 80]
    if not found:
        raise CannotBuildError(
            "nvcc is there, but no GPU to compile for: set VT_FAST_CUDA_ARCH, for example to 90a, or to all"
        )
    return found

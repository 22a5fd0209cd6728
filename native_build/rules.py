"""The sources and their compiler flags, as a file for ninja."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from native_build import cuda
from native_build.cuda import CudaToolchain
from native_build.toolchain import Toolchain

LIBRARY = "libvt_fast_cpu.so"
CUDA_LIBRARY = "libvt_fast_cuda.so"

# No flag that depends on the machine of the build, and none that relaxes floating-point arithmetic.
_COMMON = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]

_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# All processors with AVX-512 have PREFETCHW.
_AVX512 = [
    *_AVX2,
    "-mprfchw",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mprefer-vector-width=512",
]

# The kernels are compiled once for each. Only they get these flags: all other code runs on any processor.
_INSTRUCTION_SETS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "baseline": [],
        "avx2": _AVX2,
        "avx512": _AVX512,
        "avx512_bf16": [*_AVX512, "-mavx512bf16"],
    },
}
_PLAIN: dict[str, list[str]] = {"baseline": []}


def _sanitizers() -> list[str]:
    """Flags for the sanitizers in VT_FAST_SANITIZE, such as "address,undefined" from `make sanitize`."""
    names = os.environ.get("VT_FAST_SANITIZE", "")
    if not names:
        return []
    return [f"-fsanitize={names}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]


@dataclass(frozen=True)
class _Object:
    name: str
    source: str
    flags: list[str]


def ninja_file(tools: Toolchain, cuda_tools: CudaToolchain | None, directory: Path) -> str:
    """The rules for ninja, which runs in the root of the source tree and builds into ``directory``.

    Commands name sources relative to that root, so that the libraries contain no path of this machine.
    """
    # Messages of torch's headers name their files.
    torch = [f"-isystem{tools.torch_include}", f"-ffile-prefix-map={tools.torch_include}=include"]
    kernels = [
        _Object(f"isa_{name}.o", "csrc/cpu/kernels.cpp", [*flags, *_quiet(tools)])
        for name, flags in _INSTRUCTION_SETS.get(tools.machine, _PLAIN).items()
    ]
    library = [
        *kernels,
        _Object("instruction_sets.o", "csrc/cpu/instruction_sets.cpp", []),
        _Object("cpu_ops.o", "csrc/torch/cpu_ops.cpp", torch),
        _Object("cpu_raw_ops.o", "csrc/torch/cpu_raw_ops.cpp", torch),
    ]
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {_path(directory)}",
        "rule compile",
        f"  command = {_command(tools.compiler)} -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link",
        f"  command = {_command(tools.compiler)} -shared -o $out $in $flags",
        "  description = link $out",
    ]
    for item in library:
        lines += _compile(tools, directory, item)
    # At run time torch's library is found by its name: it is loaded already.
    torch_library, needs = tools.torch_lib / "libtorch_cpu.so", "csrc/exports.map"
    if tools.is_cross:
        # That of another machine is not here. To link, its name is enough.
        torch_library = directory / "libtorch_cpu.so"
        needs += f" {_path(torch_library)}"
        lines += [
            f"build {_path(torch_library)}: link",
            "  flags = -x c++ /dev/null -Wl,-soname,libtorch_cpu.so",
        ]
    lines += _link(
        directory,
        LIBRARY,
        library,
        [str(torch_library), "-Wl,--version-script=csrc/exports.map"],
        needs=needs,
    )
    if cuda_tools is not None:
        lines += _cuda_library(tools, cuda_tools, directory, torch)
    return "\n".join(lines) + "\n"


def _cuda_library(
    tools: Toolchain, cuda_tools: CudaToolchain, directory: Path, torch: list[str]
) -> list[str]:
    """The library with the CUDA kernels. The CUDA runtime is linked in; it finds the driver when called."""
    cuda_include = [f"-isystem{cuda_tools.include}"]
    objects = [
        _Object("cuda_ops.o", "csrc/torch/cuda_ops.cpp", torch),
        _Object("cuda_kernels.o", "csrc/cuda/kernels.cpp", []),
        _Object("cuda_device.o", "csrc/cuda/device.cpp", cuda_include),
    ]
    folder = directory / "cuda"
    lines = cuda.ninja_lines(cuda_tools, folder)
    for item in objects:
        lines += _compile(tools, directory, item)
    compiled = [_Object(f"cuda/{op}_{dtype}.o", "", []) for op, dtype in cuda.kernels()]
    flags = [
        str(cuda_tools.runtime),
        str(tools.torch_lib / "libtorch_cpu.so"),
        *("-ldl", "-lrt", "-lpthread", "-Wl,--version-script=csrc/exports.map", "-Wl,-Bsymbolic"),
    ]
    return lines + _link(directory, CUDA_LIBRARY, [*objects, *compiled], flags, needs="csrc/exports.map")


def _compile(tools: Toolchain, directory: Path, item: _Object) -> list[str]:
    return [
        f"build {_path(directory / item.name)}: compile {item.source}",
        f"  flags = {_command([*_COMMON, *tools.baseline, *item.flags, *_sanitizers()])}",
    ]


def _quiet(tools: Toolchain) -> list[str]:
    """No warnings about GCC's own intrinsics, which use undefined values on purpose (GCC bug 105593)."""
    return ["-Wno-maybe-uninitialized"] if tools.compiler_name.startswith("GCC") else []


def _link(directory: Path, name: str, objects: list[_Object], flags: list[str], needs: str) -> list[str]:
    inputs = " ".join(_path(directory / item.name) for item in objects)
    flags = [*flags, *_sanitizers(), f"-Wl,-soname,{name}"]
    return [
        f"build {_path(directory / name)}: link {inputs} | {needs}",
        f"  flags = {_command(flags)}",
    ]


def _path(path: Path) -> str:
    """A path for ninja's build lines."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _command(words: list[str]) -> str:
    """Words for the shell that ninja starts."""
    return shlex.join(words).replace("$", "$$")

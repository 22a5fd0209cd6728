"""The CUDA kernels on an emulator: built from the same sources, called through the ops as on a GPU.

See tests/cuda/emulator. The library is built with ninja into build/emulator when a test first needs it. On a
machine with a GPU that runs the backend "cuda", the tests run there, and nothing is emulated.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from native_build import toolchain
from tests._support.devices import on_cpu, on_gpu
from vt_fast.ops.library import Pass

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "emulator"
LIBRARY = "libvt_fast_emulated.so"

OPS = (
    "tokenize",
    "project",
    "project_tokenize",
    "tokenize_backward",
    "project_backward",
    "project_tokenize_backward",
)
TYPES = ("Fp32", "Bf16", "Fp16")

REAL = on_gpu("cuda")

# When the data of asynchronous copies move: at the latest moment allowed, at once, or either.
LATE, EARLY, RANDOM = 0, 1, 2


class Conditions(ctypes.Structure):
    """How calls are emulated: emulated.h."""

    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("copies", ctypes.c_int32),
        ("clusters", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("max_ranks", ctypes.c_int32),
    ]


class Report(ctypes.Structure):
    """What the last call was: emulated.h."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("warps", "ranks", "stages", "mt", "nt", "tp", "clusters", "unit", "shared_bytes", "launches")
    ]


@functools.cache
def library() -> Any:
    """The library, built if its sources have changed."""
    path = build()
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


def build(optimise: str = "-O1") -> Path:
    """Build the library."""
    BUILD.mkdir(parents=True, exist_ok=True)
    tools = toolchain.find()
    flags = [
        "-std=c++17",
        optimise,
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Icsrc",
        "-Icsrc/cuda",
        "-Itests/cuda",
        "-Itests/cuda/emulator",
        f"-isystem{tools.torch_include}",
    ]
    objects = [
        (f"{op}_{dtype}.o", "tests/cuda/emulated_kernels.cpp", [f"-DVT_OP={op}", f"-DVT_TYPE={dtype}"])
        for dtype in TYPES
        for op in OPS
    ]
    objects += [("kernels.o", "csrc/cuda/kernels.cpp", []), ("ops.o", "tests/cuda/emulated_ops.cpp", [])]
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {BUILD}",
        "rule compile",
        f"  command = {shlex.join([*tools.compiler, *flags])} -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {shlex.join(tools.compiler)} -shared -o $out $in {tools.torch_lib / 'libtorch_cpu.so'}",
        *(
            line
            for name, source, definitions in objects
            for line in (f"build {BUILD / name}: compile {source}", f"  flags = {shlex.join(definitions)}")
        ),
        f"build {BUILD / LIBRARY}: link {' '.join(str(BUILD / name) for name, _, _ in objects)}",
    ]
    (BUILD / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = os.environ.get("MAX_JOBS", "")
    command = [tools.ninja, "-f", str(BUILD / "build.ninja"), *(["-j", jobs] if jobs else [])]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        raise RuntimeError(found.stdout[-4000:] + found.stderr[-4000:])
    return BUILD / LIBRARY


@contextlib.contextmanager
def emulated(
    *,
    seed: int = 1,
    copies: int = LATE,
    clusters: int = 3,
    shared_bytes: int = 227 * 1024,
    max_ranks: int = 16,
) -> Iterator[None]:
    """Within, calls of the ops on CPU tensors run the CUDA kernels on the emulator."""
    if REAL:
        yield
        return
    loaded = library()
    loaded.set_conditions(ctypes.byref(Conditions(seed, copies, clusters, shared_bytes, max_ranks)))

    def implementation(op: Pass) -> Any:
        own = getattr(torch.ops.vt_fast_emulated, op.name).default
        return lambda *args, backend=None: own(*args)

    with on_cpu(implementation):
        yield


def last_report() -> Report | None:
    """What the last call was; None on a GPU."""
    if REAL:
        return None
    report = Report()
    library().last_report(ctypes.byref(report))
    return report

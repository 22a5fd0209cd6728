"""The CUDA kernels on an emulator: built from the same sources, called through the ops as on a GPU.

See tests/cuda/emulator. The library is built with ninja into build/emulator when a test first needs it. On a
machine with a GPU that runs the backend "cuda", the tests run there, and nothing is emulated.
``VT_FAST_EMULATED=tokenize,tokenize_backward:Bf16`` leaves out the other kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import itertools
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from native_build import toolchain
from native_build.cuda import OPS, TYPES
from tests._support.devices import on_cpu, on_gpu
from vt_fast.ops.library import Pass

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path("build") / "emulator"  # below the root, so that a copy of the tree keeps what is built
LIBRARY = "libvt_fast_emulated.so"


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
        ("split", ctypes.c_int32),
        ("far", ctypes.c_int32),
        ("dry", ctypes.c_int32),
    ]


class Report(ctypes.Structure):
    """What a call was: emulated.h."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "warps",
            "ranks",
            "stages",
            "mt",
            "nt",
            "tp",
            "clusters",
            "unit",
            "shared_bytes",
            "launches",
        )
    ]


class Sizes(ctypes.Structure):
    """What decides about a call's kernel: emulated_ops.cpp."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "op",
            "dtype",
            "layout",
            "channels",
            "out_channels",
            "keys",
            "queries",
            "extra_columns",
            "has_residual",
            "has_grad_map",
        )
    ]


def selected() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ops and types that are built."""
    ops, _, types = os.environ.get("VT_FAST_EMULATED", "").partition(":")
    return tuple(filter(None, ops.split(","))) or OPS, tuple(filter(None, types.split(","))) or TYPES


@functools.cache
def library() -> Any:
    """The library, built if its sources have changed."""
    path = build()
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


def build() -> Path:
    """Build the library."""
    (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
    tools = toolchain.find()
    flags = [
        "-std=c++17",
        "-Og",  # more takes as long to compile as it saves in the tests
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
    ops, types = selected()
    objects = []
    for dtype, op in itertools.product(TYPES, OPS):
        definitions, absent = [f"-DVT_OP={op}", f"-DVT_TYPE={dtype}"], op not in ops or dtype not in types
        name = f"{'no_' * absent}{op}_{dtype}.o"
        objects.append((name, "tests/cuda/emulated_kernels.cpp", definitions + ["-DVT_ABSENT"] * absent))
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
    jobs = os.environ.get("MAX_JOBS", "")
    command = [tools.ninja, "-f", str(BUILD / "build.ninja"), *(["-j", jobs] if jobs else [])]
    with (ROOT / BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a test run would write the same objects
        (ROOT / BUILD / "build.ninja").write_text("\n".join(lines) + "\n")
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        raise RuntimeError(found.stdout[-4000:] + found.stderr[-4000:])
    return ROOT / BUILD / LIBRARY


@contextlib.contextmanager
def emulated(
    *,
    seed: int = 1,
    copies: int = LATE,
    clusters: int = 3,
    shared_bytes: int = 227 * 1024,
    max_ranks: int = 16,
    split: bool = False,
    far: bool = False,
    dry: bool = False,
) -> Iterator[dict[str, Report]]:
    """Within, calls of the ops on CPU tensors run the CUDA kernels on the emulator.

    Yields what the last call of each op was, by its name; on a GPU nothing.

    Args:
        split: samples among clusters even where that would cost time.
        far: with operands and results at offsets of more than 32 bits.
        dry: kernels are chosen and not run; then calls fail.
    """
    if REAL:
        yield {}
        return
    loaded = library()
    found = Conditions(seed, copies, clusters, shared_bytes, max_ranks, split, far, dry)
    loaded.set_conditions(ctypes.byref(found))
    reports: dict[str, Report] = {}

    def implementation(op: Pass) -> Any:
        own = getattr(torch.ops.vt_fast_emulated, op.name).default

        def run(*args: Any, backend: str | None = None) -> Any:
            results = own(*args)
            reports[op.name] = last_report()
            return results

        return run

    with on_cpu(implementation):
        yield reports


def last_report() -> Report:
    """What the last call was."""
    report = Report()
    library().last_report(ctypes.byref(report))
    return report


def planned(sizes: Sizes, shared_bytes: int, max_ranks: int) -> Report | None:
    """The plan of a call of such sizes, or None where it does not fit on the GPU."""
    report = Report()
    conditions = Conditions(shared_bytes=shared_bytes, max_ranks=max_ranks)
    found = library().planned(ctypes.byref(sizes), ctypes.byref(conditions), ctypes.byref(report))
    return report if found else None


if __name__ == "__main__":
    build()

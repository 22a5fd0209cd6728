"""What plan.h decides for calls, and how much a tile and a sample are, from the kernels' own source.

A program for each op and dtype is built with ninja into build/counting: the kernels, compiled for the CPU
with a stand-in for the GPU's operations that counts them (counting/).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from native_build import cuda, toolchain
from tools.cuda.gpus import Gpu
from tools.cuda.machine_code import LAYOUTS, Kernel

ROOT = Path(__file__).resolve().parents[2]
_BUILD = Path("build") / "counting"


class Work(NamedTuple):
    """What all warps of a block do for a tile, or for a sample beside its tiles.

    Args:
        counted: instructions that access memory, multiply matrices, shuffle, or wait at a barrier.
        products: those that multiply matrices.
        passes: of 128 bytes through shared memory or the data path beside it, bank conflicts included.
    """

    counted: int
    products: int
    passes: int


class Plan(NamedTuple):
    """A call's kernel, its launch, and its work.

    Args:
        blocks_each: blocks of a multiprocessor that run at a time.
        unit: of the shares of clusters, in tiles.
        part_floats: the size of a part that a cluster leaves for a second kernel to add; 0 if there are none.
    """

    kernel: Kernel
    warps: int
    ranks: int
    stages: int
    shared_bytes: int
    blocks_each: int
    clusters: int
    unit: int
    tiles_per_sample: int
    part_floats: int
    tile: Work
    sample: Work


# Layout, batch, pixels, channels and tokens of a call.
Sizes = tuple[str, int, int, int, int]


def plans(
    op: str, dtype: str, gpu: Gpu, registers: Mapping[Kernel, int], calls: Sequence[Sizes]
) -> list[Plan | None]:
    """A plan for each call of an op in a dtype ("Bf16"); None where plan.h has no kernel."""
    limits = (gpu.block_shared_bytes, gpu.max_ranks, gpu.shared_bytes, gpu.registers, gpu.threads)
    lines = [_line("gpu", gpu.processors, *limits)]
    lines += [
        _line("registers", LAYOUTS.index(kernel.layout), kernel.mt, kernel.nt, kernel.tp, count)
        for kernel, count in registers.items()
        if kernel.walks
    ]
    lines += [_line("call", LAYOUTS.index(layout), *sizes) for layout, *sizes in calls]
    program = build([(op, dtype)])[0]
    found = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    return [_plan(json.loads(line)) for line in found.stdout.splitlines()]


def _line(*words: Any) -> str:
    return " ".join(map(str, words))


def _plan(found: dict[str, Any]) -> Plan | None:
    if "refused" in found:
        return None
    layout, *sizes = (found.pop(name) for name in ("layout", "mt", "nt", "tp"))
    kernel = Kernel(found.pop("kernel"), LAYOUTS[layout], *sizes)
    tile, sample = (Work(**found.pop(name)) for name in ("tile", "sample"))
    return Plan(kernel, tile=tile, sample=sample, **found)


def build(kernels: Iterable[tuple[str, str]]) -> list[Path]:
    """Build the programs of ops and types."""
    tools = toolchain.find()
    folder = Path("tools") / "cuda" / "counting"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{folder}", "-Icsrc", "-Icsrc/cuda"]
    (ROOT / _BUILD).mkdir(parents=True, exist_ok=True)
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {_BUILD}",
        "rule program",
        f"  command = {shlex.join([*tools.compiler, *flags])} $definitions -MD -MF $out.d $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    for op, dtype in cuda.kernels():
        lines += [
            f"build {_BUILD / f'{op}_{dtype}'}: program {folder / 'counts.cpp'}",
            f"  definitions = -DVT_OP={op} -DVT_TYPE={dtype}",
        ]
    (ROOT / _BUILD / "build.ninja").write_text("\n".join(lines) + "\n")
    names = [str(_BUILD / f"{op}_{dtype}") for op, dtype in kernels]
    jobs = os.environ.get("MAX_JOBS", "")
    command = [tools.ninja, "-f", str(_BUILD / "build.ninja"), *(["-j", jobs] if jobs else []), *names]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        raise RuntimeError(found.stdout[-4000:] + found.stderr[-4000:])
    return [ROOT / name for name in names]

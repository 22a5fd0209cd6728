"""Faults that were written by hand, by file.

``run --target cuda --planted`` tries those in the CUDA kernels, ``--target cpu --planted`` those in the CPU
kernels. Each says what would happen, and which CUDA kernels are built to try it. Of the ones that are
``harmless`` it says why.
"""

from tools.mutants.planted import cpu
from tools.mutants.planted.backward import BACKWARD
from tools.mutants.planted.calls import CALLS, OPS
from tools.mutants.planted.fault import Fault
from tools.mutants.planted.forward import FORWARD
from tools.mutants.planted.kernel import KERNEL
from tools.mutants.planted.numbers import NUMBERS, ROWS
from tools.mutants.planted.shares import CALL, PARTS, PLAN
from tools.mutants.planted.switches import IN_BACKWARD, IN_CALLS, IN_FORWARD, IN_KERNEL, IN_OPS, IN_ROWS
from tools.mutants.planted.tile import TILE

__all__ = ["PLANTED", "Fault"]

PLANTED: dict[str, list[Fault]] = {
    "csrc/cpu/memory.h": cpu.MEMORY,
    "csrc/cpu/tokenize.h": cpu.TOKENIZE,
    "csrc/cpu/softmax.h": cpu.SOFTMAX,
    "csrc/cpu/layer_norm.h": cpu.LAYER_NORM,
    "csrc/torch/cpu_calls.h": cpu.CALLS,
    "csrc/cuda/numbers.h": NUMBERS,
    "csrc/cuda/rows.h": [*ROWS, *IN_ROWS],
    "csrc/cuda/tile.h": TILE,
    "csrc/cuda/kernel.h": [*KERNEL, *IN_KERNEL],
    "csrc/cuda/forward.h": [*FORWARD, *IN_FORWARD],
    "csrc/cuda/backward.h": [*BACKWARD, *IN_BACKWARD],
    "csrc/cuda/call.h": CALL,
    "csrc/cuda/parts.h": PARTS,
    "csrc/cuda/plan.h": PLAN,
    "csrc/torch/cuda_calls.h": [*CALLS, *IN_CALLS],
    "csrc/torch/cuda_ops.h": [*OPS, *IN_OPS],
}

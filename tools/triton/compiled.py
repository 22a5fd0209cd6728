"""What the compiler makes of a launch, for a GPU that need not be there."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import triton

from tools.triton.calls import Launch
from tools.triton.gpus import Gpu
from vt_fast.backends.triton.ahead import compiling_for
from vt_fast.backends.triton.compiling import MiscompiledError


class Compiled(NamedTuple):
    """A compiled kernel; None is not known.

    Args:
        registers: of a thread.
        spills: instructions that move registers to or from memory.
        shared: bytes of shared memory.
        load_bytes: the widest load.
        asynchronous: how many loads are asynchronous.
        matrix: how many instructions multiply matrices.
        error: the compiler's, if there is no kernel.
    """

    registers: int | None = None
    spills: int | None = None
    shared: int | None = None
    load_bytes: int | None = None
    asynchronous: int | None = None
    matrix: int | None = None
    error: str | None = None

    def fault(self, gpu: Gpu) -> str | None:
        """Why it is unfit for the GPU, or None."""
        if self.error is not None:
            return self.error
        if self.spills:
            return f"{self.spills} instructions spill"
        if self.shared is not None and self.shared > gpu.program_shared_bytes:
            return f"{self.shared} bytes of shared memory, {gpu.program_shared_bytes} at most"
        return None


def unless_miscompiled(gpu: Gpu) -> Callable[[Launch], None]:
    """A check for :func:`tools.triton.calls.launches`: whether the GPU's compiler gets a kernel wrong."""

    def check(launch: Launch) -> None:
        try:
            with compiling_for(gpu.target):
                launch.request.compiled()
        except MiscompiledError:
            raise
        except Exception:  # `compiled` has it
            pass

    return check


def compiled(launch: Launch, gpu: Gpu) -> Compiled:
    """Compile a launch, or find it in Triton's cache."""
    try:
        with compiling_for(gpu.target):
            kernel = launch.request.compiled()
    except Exception as error:  # compilers raise anything
        return Compiled(error=f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}")
    return (_of_cubin if "cubin" in kernel.asm else _of_amdgcn)(kernel)


def _of_cubin(kernel: Any) -> Compiled:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    ptx = kernel.asm["ptx"]
    copies = [int(size, 16) for size in re.findall(r"cp\.async\.c[ag]\S*[^;]*?, 0x([0-9a-f]+)", ptx)]
    loads = [
        int(vector or 1) * int(bits) // 8
        for vector, bits in re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    ]
    return Compiled(
        registers=_number(r"REG:(\d+)", usage),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared=kernel.metadata.shared,
        load_bytes=max(copies + loads, default=0),
        asynchronous=len(copies),
        matrix=len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|DMMA)\.", code)) + ptx.count("tcgen05.mma"),
    )


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


_AMD_LOADS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2}


def _of_amdgcn(kernel: Any) -> Compiled:
    code = kernel.asm["amdgcn"]
    loads = set(re.findall(r"(?:global|buffer)_load_(\w+)\b", code))
    return Compiled(
        registers=_number(r"\.vgpr_count:\s+(\d+)", code),
        spills=_number(r"\.vgpr_spill_count:\s+(\d+)", code),
        shared=kernel.metadata.shared,
        load_bytes=max((size for name, size in _AMD_LOADS.items() if name in loads), default=0),
        matrix=code.count("v_mfma"),
    )


def _number(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text)
    return int(match[1]) if match else None

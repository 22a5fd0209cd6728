"""A launch of a Triton kernel, compiled for a GPU that need not be there, and what came of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from vt_fast.backends.triton.ahead import Request, compiling_for

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that a program can have.
SHARED = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "gfx942": 64 << 10,
}

_OPTIONS = ("num_warps", "num_stages")


class Launch(NamedTuple):
    """What would be launched, and how many programs of it; ``name``: of the call, for people."""

    name: str
    request: Request
    programs: int

    @property
    def kernel(self) -> str:
        """Its name."""
        return self.request.name

    @property
    def constants(self) -> dict[str, Any]:
        """What the kernel is told before it is compiled."""
        constants = {key: value for key, value in self.request.constants.items() if key not in _OPTIONS}
        config = constants.pop("cfg", None)
        return constants if config is None else config._asdict()

    @property
    def options(self) -> dict[str, int]:
        """What Triton is told."""
        return {key: self.request.constants[key] for key in _OPTIONS if key in self.request.constants}

    @property
    def setting(self) -> str:
        """What of it is a matter of choice, for people."""
        constants = self.constants
        words = [f"{key.lower()}={constants[key]}" for key in ("TILE", "CHUNK") if key in constants]
        if self.kernel == "project_forward":
            words.append("keep" if constants["KEEP"] else "again")
        elif "OWN" in constants:
            kept, loops, own = (constants[key] for key in ("KEEP", "LOOPS", "OWN"))
            words.append("keep" if kept else f"own={own}" if loops == 1 else f"loops={loops}")
        words += [f"{key.removeprefix('num_')}={value}" for key, value in self.options.items()]
        return " ".join(words)


@dataclass
class Compiled:
    """Registers of a thread, instructions that spill, bytes of shared memory, bytes of the widest load ...

    ... how many loads are asynchronous and how many instructions multiply matrices; or why there are none.
    """

    registers: int | None = None
    spills: int | None = None
    shared: int | None = None
    load_bytes: int | None = None
    asynchronous: int | None = None
    matrix: int | None = None
    error: str | None = None

    def fault(self, target: str) -> str | None:
        """What is wrong with it, if anything is."""
        if self.error is not None:
            return self.error
        if self.spills:
            return f"{self.spills} instructions spill"
        if self.shared is not None and self.shared > SHARED[target]:
            return f"{self.shared} bytes of shared memory, {SHARED[target]} at most"
        return None


def examined(launch: Launch, target: str) -> Compiled:
    """Compile it and look at what came out."""
    found = Compiled()
    try:
        with compiling_for(TARGETS[target]):
            result = launch.request.compiled()
    except Exception as error:  # a compiler's errors are of any kind, and are what is to be reported
        found.error = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        return found
    found.shared = result.metadata.shared
    if "cubin" in result.asm:
        _examine_nvidia(found, result)
    else:
        _examine_amd(found, result)
    return found


def _examine_nvidia(found: Compiled, result: Any) -> None:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None
    found.registers = int(registers[1])
    found.spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    ptx = result.asm["ptx"]
    widths = [int(size, 16) for size in re.findall(r"cp\.async\.c[ag]\S*[^;]*?, 0x([0-9a-f]+)", ptx)]
    found.asynchronous = len(widths)
    for vector, bits in re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx):
        widths.append(int(vector or 1) * int(bits) // 8)
    found.load_bytes = max(widths, default=0)
    found.matrix = len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|DMMA)\.", code)) + ptx.count("tcgen05.mma")


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _examine_amd(found: Compiled, result: Any) -> None:
    code = result.asm["amdgcn"]

    def number(pattern: str) -> int | None:
        match = re.search(pattern, code)
        return int(match[1]) if match else None

    found.registers = number(r"\.vgpr_count:\s+(\d+)")
    found.spills = number(r"\.vgpr_spill_count:\s+(\d+)")
    found.matrix = code.count("v_mfma")
    widths = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2}
    found.load_bytes = max(
        (width for name, width in widths.items() if re.search(rf"(?:global|buffer)_load_{name}\b", code)),
        default=0,
    )

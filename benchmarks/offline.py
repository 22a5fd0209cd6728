"""What the Triton kernels compile to, for GPUs that are not there.

Calls of the ops on meta tensors tell which kernels would be launched, and how. Each is compiled for each
target, and what the compiler made of it is a row of a table: registers, spills, shared memory, how wide
loads are, whether they are asynchronous, whether matrix instructions are used.

    python -m benchmarks.offline            # all calls, all targets; refreshes the committed table
    python -m benchmarks.offline --check    # a cover of them; exits with 1 if a kernel spills
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vt_fast.backends.contract import (
    Project,
    ProjectBackward,
    ProjectTokenize,
    ProjectTokenizeBackward,
    Tokenize,
    TokenizeBackward,
)
from vt_fast.backends.triton import calls, device
from vt_fast.backends.triton.launcher import observed

TABLE = Path(__file__).parent / "results" / "offline.json"

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Shared memory that a program can have, and all programs of a multiprocessor together, in bytes.
SHARED = {
    "sm_80": (163 << 10, 164 << 10),
    "sm_86": (99 << 10, 100 << 10),
    "sm_90": (227 << 10, 228 << 10),
    "sm_100": (227 << 10, 228 << 10),
    "gfx942": (64 << 10, 64 << 10),
}

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.uint8: "u8",
}


@dataclass(frozen=True)
class Launch:
    """A kernel with what it would be launched with."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    options: dict[str, int]

    @classmethod
    def of(cls, name: str, kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> Launch:
        """As Triton would specialize it: 1 is a constant, multiples of 16 are known to be such."""
        named = ("num_warps", "num_stages")
        options: dict[str, int] = {name: constants[name] for name in named if name in constants}
        given = {key: value for key, value in constants.items() if key not in options}
        signature: dict[str, str] = {}
        divisible = []
        for parameter, value in zip(kernel.arg_names, arguments, strict=False):
            if isinstance(value, Tensor):
                signature[parameter] = "*" + _TYPES[value.dtype]
                divisible.append(parameter)
            elif value == 1:
                given[parameter] = 1
                signature[parameter] = "constexpr"
            else:
                signature[parameter] = "i32" if value < 2**31 else "i64"
                if value % 16 == 0:
                    divisible.append(parameter)
        for parameter in kernel.arg_names[len(arguments) :]:
            signature[parameter] = "constexpr"
        return cls(name, kernel, signature, given, tuple(divisible), options)

    def compiled(self, target: str) -> Any:
        """What Triton makes of it."""
        names = list(self.signature)
        attributes = {(names.index(each),): [["tt.divisibility", 16]] for each in self.divisible}
        source = ASTSource(
            fn=self.kernel, signature=self.signature, constexprs=self.constants, attrs=attributes
        )
        return triton.compile(source, target=TARGETS[target], options=dict(self.options))


@dataclass
class Row:
    """What a kernel became on a target."""

    call: str
    kernel: str
    target: str
    setting: str
    registers: int | None = None
    spills: int | None = None
    shared: int | None = None
    shared_most: int | None = None
    load_bytes: int | None = None
    asynchronous: int | None = None
    matrix: int | None = None
    error: str | None = None


def _call(op: str, dtype: torch.dtype, layout: str, shape: tuple[int, int, int, int]) -> Callable[[], Any]:
    """An op's call, or its backward's, on meta tensors of shape (B, N, C, L)."""
    batch, pixels, channels, tokens = shape

    def empty(*sizes: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(sizes, dtype=kind, device="meta")

    def feature_map() -> Tensor:
        if layout == "nchw":
            return empty(batch, channels, pixels, 1)
        return empty(batch, pixels, channels)

    sums = torch.float32
    x, queries, keys = feature_map(), empty(tokens, channels), empty(batch, tokens, channels)
    pooled, lse = empty(batch, tokens, channels, kind=sums), empty(batch, tokens, kind=sums)
    records: dict[str, Callable[[], Any]] = {
        "tokenize": lambda: calls.tokenize(Tokenize(x, queries, None, None, None, 1, False, "triton")),
        "tokenize_backward": lambda: calls.tokenize_backward(
            TokenizeBackward(
                keys, None, x, queries, None, None, None, pooled, lse, 1, [True, True, False, False], "triton"
            )
        ),
        "project": lambda: calls.project(Project(x, keys, keys, None, None, True, 1, "triton")),
        "project_backward": lambda: calls.project_backward(
            ProjectBackward(
                feature_map(), x, keys, keys, None, True, 1, [True, True, True, False], "triton"
            )
        ),
        "project_tokenize": lambda: calls.project_tokenize(
            ProjectTokenize(
                x, keys, keys, keys, None, None, None, None, None, True, 1, True, False, "triton"
            )
        ),
        "project_tokenize_backward": lambda: calls.project_tokenize_backward(
            ProjectTokenizeBackward(
                feature_map(), keys, None, x, keys, keys, keys, None, None, None, None, None, pooled, lse,
                True, 1, [True, True, True, True, False, False, False, False], "triton",
            )
        ),
    }  # fmt: skip
    return records[op]


OPS = (
    "tokenize",
    "tokenize_backward",
    "project",
    "project_backward",
    "project_tokenize",
    "project_tokenize_backward",
)
SHAPES = (
    (256, 196, 256, 16),
    (256, 196, 1024, 16),
    (8, 60800, 256, 8),
    (1, 1048576, 1024, 16),
    (64, 196, 768, 64),
    (64, 49, 2048, 128),
)
COVER = ((256, 196, 256, 16), (256, 196, 1024, 16))


def launches(
    shapes: tuple[tuple[int, int, int, int], ...], dtypes: tuple[torch.dtype, ...]
) -> Iterator[Launch]:
    """Every kernel of every op's call, each once."""
    for op, dtype, layout, shape in itertools.product(OPS, dtypes, ("channels_last", "nchw"), shapes):
        label = f"{op} {'x'.join(map(str, shape))} {_TYPES[dtype]} {layout}"
        found: list[Launch] = []

        def observe(
            kernel: Any, _: Any, arguments: tuple[Any, ...], constants: dict[str, Any],
            label: str = label, found: list[Launch] = found,
        ) -> None:  # fmt: skip
            found.append(Launch.of(label, kernel, arguments, constants))

        with observed(observe):
            _call(op, dtype, layout, shape)()
        yield from found


def examined(launch: Launch, target: str) -> Row:
    """Compile it and look at what came out."""
    constants = launch.constants
    setting = " ".join(
        f"{key.lower()}={constants[key]}" for key in ("TILE", "CHUNK", "OWN") if key in constants
    )
    setting += " " + " ".join(f"{key.removeprefix('num_')}={value}" for key, value in launch.options.items())
    row = Row(launch.name, launch.kernel.__name__, target, setting.strip(), shared_most=SHARED[target][0])
    try:
        result = launch.compiled(target)
    except Exception as error:  # a compiler's errors are of any kind, and are what is to be reported
        row.error = f"{type(error).__name__}: {' '.join(str(error).split())[:900]}"
        return row
    row.shared = result.metadata.shared
    if "cubin" in result.asm:
        _examine_nvidia(row, result)
    else:
        _examine_amd(row, result)
    return row


def _examine_nvidia(row: Row, result: Any) -> None:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        code = subprocess.run(
            [tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None
    row.registers = int(found[1])
    row.spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    ptx = result.asm["ptx"]
    widths = [
        int(size, 16) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?, 0x([0-9a-f]+)", ptx)
    ]
    row.asynchronous = len(widths)
    for vector, bits in re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx):
        widths.append(int(vector or 1) * int(bits) // 8)
    row.load_bytes = max(widths, default=0)
    row.matrix = len(re.findall(r"\bHMMA\.|\bHGMMA\.|\bUTCHMMA|\bDMMA", code)) + len(
        re.findall(r"tcgen05\.mma", ptx)
    )


def _examine_amd(row: Row, result: Any) -> None:
    code = result.asm["amdgcn"]

    def number(pattern: str) -> int | None:
        found = re.search(pattern, code)
        return int(found[1]) if found else None

    row.registers = number(r"\.vgpr_count:\s+(\d+)")
    row.spills = number(r"\.vgpr_spill_count:\s+(\d+)")
    row.matrix = code.count("v_mfma")
    widths = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2}
    row.load_bytes = max(
        (width for name, width in widths.items() if re.search(rf"(?:global|buffer)_load_{name}\b", code)),
        default=0,
    )


@contextlib.contextmanager
def _processors(count: int) -> Iterator[None]:
    """As many multiprocessors as if there were a GPU."""
    before = device.processors
    device.processors = lambda _: count  # type: ignore[assignment]
    try:
        yield
    finally:
        device.processors = before


def main(arguments: list[str] | None = None) -> int:
    """Compile, print what is wrong, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__)
    parser.add_argument("--check", action="store_true", help="a cover alone, and no table")
    parser.add_argument("--target", nargs="+", choices=TARGETS, help="default: all; with --check two")
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    targets = options.target or (["sm_90", "gfx942"] if options.check else list(TARGETS))
    dtypes = (
        (torch.bfloat16, torch.float32) if options.check else (torch.bfloat16, torch.float16, torch.float32)
    )
    with _processors(132):
        todo = [
            (launch, target)
            for launch in launches(COVER if options.check else SHAPES, dtypes)
            if launch.name.split()[0] in options.op
            for target in targets
        ]
    rows = [examined(launch, target) for launch, target in tqdm(todo, unit="kernel")]
    bad = [row for row in rows if row.error or row.spills or (row.shared or 0) > (row.shared_most or 0)]
    for row in bad:
        what = row.error or f"{row.spills} spills, {row.shared} bytes of shared memory of {row.shared_most}"
        print(f"{row.target} {row.kernel} [{row.setting}] {row.call}: {what}")
    print(f"{len(rows)} kernels, {len(bad)} with an error, spills or too much shared memory")
    if not options.check:
        options.output.write_text(
            json.dumps({"triton": triton.__version__, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    return bool(bad) and options.check


if __name__ == "__main__":
    sys.exit(main())

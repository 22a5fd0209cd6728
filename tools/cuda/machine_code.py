"""Facts about compiled kernels: registers, stack and machine code, as cuobjdump shows them."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Instructions that never run, "@!PT", are left out.
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\d\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)")
_WALK = re.compile(
    r"start_kernel<\w+::cuda::(Forward|Backward)<[\w:]+, \(\w+::Layout\)(\d), (\d+), (\d+), (\d+),"
)
# SHARED of CombineRows, and LANES.
_SMALL = re.compile(r"start_small_kernel<\w+::cuda::(\w+)<[\w:]+(?:, \w+, \w+, (true|false))?(?:, (\d+))?> >")

LAYOUTS = ("last", "first", "shifted")
# By what machine code calls them. LDGSTS copies from global to shared memory (cp.async), LDL and STL move
# registers to and from the stack.
_ACCESSES = ("LDGSTS", "LDG", "STG", "LDSM", "LDS", "STS", "LDL", "STL")
# What the model counts, too.
_COUNTED = ("LDGSTS", "LDG", "STG", "LDSM", "LDS", "STS", "HMMA", "SHFL", "BAR")


class Kernel(NamedTuple):
    """A kernel of an object. Those that add up parts have no sizes.

    Args:
        kernel: "forward" or "backward" for one that walks over a map; otherwise its class, whether it is for
            operands that the batch shares, and the lanes of an element.
        layout: of the map.
        mt: the channels of a warp, in units of 16.
        nt: the rows, in units of 8.
        tp: the pixels of a tile.
    """

    kernel: str
    layout: str = ""
    mt: int | None = None
    nt: int | None = None
    tp: int | None = None

    @property
    def walks(self) -> bool:
        """Whether it walks over a map."""
        return self.layout != ""


class Facts(NamedTuple):
    """What a kernel compiled to. Widths are bytes of a thread, such as "16x24 8x12".

    Args:
        registers: of a thread.
        stack: bytes of a thread.
        spills: bytes that instructions store to the stack.
        instructions: all of them.
        tile: the fewest from the head of the loop over tiles to the last product in it: branches skip what
            can be skipped, and loops run once at most.
        counted: those of ``tile`` that access memory, multiply matrices, shuffle, or wait at a barrier.
        products: tensor core instructions.
        copies: asynchronous copies from global to shared memory, by width.
        loads: from global memory, by width.
        stores: to global memory, by width.
        matrix_loads: loads of four 8 x 8 matrices from shared memory.
        shared_loads: from shared memory, by width.
        shared_stores: to shared memory, by width.
        barriers: barriers of a block.
        shuffles: exchanges between lanes.
    """

    registers: int
    stack: int
    spills: int
    instructions: int
    tile: int
    counted: int
    products: int
    copies: str
    loads: str
    stores: str
    matrix_loads: int
    shared_loads: str
    shared_stores: str
    barriers: int
    shuffles: int


def tool() -> str | None:
    """Cuobjdump: that of the CUDA toolkit, else the one in Triton's package."""
    found = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if found is None and (spec := importlib.util.find_spec("triton")) is not None and spec.origin is not None:
        found = shutil.which(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return found


def facts(path: Path, architecture: str) -> dict[Kernel, Facts]:
    """The kernels of an object for an architecture, such as "90a"."""
    usage = _output(path, architecture, "-res-usage")
    code = _output(path, architecture, "-sass")
    return parse(usage, code.splitlines())


def has_code(path: Path, architecture: str) -> bool:
    """Whether an object has machine code for an architecture."""
    return f"sm_{architecture}.cubin" in _output(path, None, "-lelf")


def parse(usage: str, code: Iterable[str]) -> dict[Kernel, Facts]:
    """The kernels in what ``cuobjdump -res-usage`` and ``cuobjdump -sass`` print."""
    used = {name: (int(registers), int(stack)) for name, registers, stack in _USAGE.findall(usage)}
    functions = dict(_functions(code))
    names = dict(zip(functions, _demangled(functions), strict=True))
    return {kernel_of(names[name]): _facts(*used[name], functions[name]) for name in functions}


def kernel_of(name: str) -> Kernel:
    """Which kernel a function is.

    Example:
        >>> kernel_of("void vt::cuda::start_small_kernel<vt::cuda::CombineTokens<vt::Bf16, 4> >(...)")
        Kernel(kernel='combine_tokens_4', layout='', mt=None, nt=None, tp=None)
    """
    if found := _WALK.search(name):
        kind, layout, mt, nt, tp = found.groups()
        return Kernel(kind.lower(), LAYOUTS[int(layout)], int(mt), int(nt), int(tp))
    if found := _SMALL.search(name):
        name, shared, lanes = found.groups()
        words = [
            re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(),
            "shared" if shared == "true" else "",
            lanes,
        ]
        return Kernel("_".join(filter(None, words)))
    raise ValueError(f"`name` must be a kernel of csrc/cuda, got {name!r}")


def widths(counts: str) -> dict[int, int]:
    """How many accesses there are of each width in bytes.

    Example:
        >>> widths("16x24 8x12")
        {16: 24, 8: 12}
    """
    pairs = (word.split("x") for word in counts.split())
    return {int(width): int(count) for width, count in pairs}


class _Instruction(NamedTuple):
    address: int
    predicated: bool
    name: str
    operands: str

    @property
    def kind(self) -> str:
        """The name without its modifiers."""
        return self.name.split(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands) if self.kind == "BRA" else None
        return int(found[1], 16) if found else None

    @property
    def ends(self) -> bool:
        """Whether the next instruction never follows."""
        always = not self.predicated and not re.search(r"P\d|UR", self.operands)
        return always and self.kind in ("BRA", "EXIT", "RET", "BRX")


def _functions(code: Iterable[str]) -> Iterator[tuple[str, list[_Instruction]]]:
    name, found = "", list[_Instruction]()
    for line in code:
        if (match := _INSTRUCTION.match(line)) is not None:
            found.append(_Instruction(int(match[1], 16), match[2] is not None, match[3], match[4]))
        elif "Function : " in line:
            if name:
                yield name, found
            name, found = line.split("Function : ")[1].strip(), []
    if name:
        yield name, found


def _facts(registers: int, stack: int, code: list[_Instruction]) -> Facts:
    by_width: dict[str, Counter[int]] = {access: Counter() for access in _ACCESSES}
    for each in code:
        if each.kind in by_width:
            by_width[each.kind][_width(each.name)] += 1
    kinds = Counter(each.kind for each in code)
    tile, counted = _tile(code)
    return Facts(
        registers=registers,
        stack=stack,
        spills=sum(width * count for width, count in by_width["STL"].items()),
        instructions=len(code) - kinds["NOP"],
        tile=tile,
        counted=counted,
        products=kinds["HMMA"],
        copies=_written(by_width["LDGSTS"]),
        loads=_written(by_width["LDG"]),
        stores=_written(by_width["STG"]),
        matrix_loads=kinds["LDSM"],
        shared_loads=_written(by_width["LDS"]),
        shared_stores=_written(by_width["STS"]),
        barriers=kinds["BAR"],
        shuffles=kinds["SHFL"],
    )


def _tile(code: list[_Instruction]) -> tuple[int, int]:
    """The shortest way from the head of the innermost loop around all products to the last one.

    Or all instructions between them, where jumps back are on the way.
    """
    products = [index for index, each in enumerate(code) if each.kind == "HMMA"]
    if not products:
        return 0, 0
    first, last = code[products[0]].address, code[products[-1]].address
    branches = {each.address: each.target for each in code if each.target is not None}
    heads = [target for address, target in branches.items() if address >= last and target <= first]
    head = max(heads, default=first)
    # For each address that is reached, instructions before it, and how many of them are counted.
    reached = {head: (0, 0)}
    for each, following in itertools.pairwise(code[: products[-1] + 1]):
        if each.address not in reached:
            continue
        steps, counted = reached[each.address]
        way = (steps + 1, counted + (each.kind in _COUNTED))
        for address in (None if each.ends else following.address, branches.get(each.address)):
            if address is not None and each.address < address <= last:
                reached[address] = min(reached.get(address, way), way)
    if last not in reached:
        between = [each for each in code if head <= each.address <= last]
        return len(between), sum(each.kind in _COUNTED for each in between)
    steps, counted = reached[last]
    return steps + 1, counted + 1


def _width(name: str) -> int:
    modifiers = name.split(".")[1:]
    for width, words in {16: ("128",), 8: ("64",), 2: ("U16", "S16"), 1: ("U8", "S8")}.items():
        if any(word in modifiers for word in words):
            return width
    return 4


def _written(counts: Counter[int]) -> str:
    return " ".join(f"{width}x{counts[width]}" for width in sorted(counts, reverse=True))


def _demangled(names: Iterable[str]) -> list[str]:
    found = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


def _output(path: Path, architecture: str | None, option: str) -> str:
    command = tool()
    if command is None:
        raise RuntimeError("cuobjdump was not found, in the CUDA toolkit or in Triton's package")
    chosen = [] if architecture is None else ["-arch", f"sm_{architecture}"]
    found = subprocess.run([command, option, *chosen, str(path)], capture_output=True, text=True)
    if found.returncode != 0:
        raise RuntimeError(f"`cuobjdump {option} {path}` failed: {(found.stderr or found.stdout).strip()}")
    return found.stdout

"""How long a launch should take: from its bytes, how many programs run at once, and the bytes they wait for.

No figure of it has been measured. It ranks settings, and tells where a measured time must come from.
Every term is a time; they overlap, so that the sum is one of fourth powers, in which the largest counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.compiled import Compiled, Launch


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet, with what can be had of it.

    ``memory`` and ``cache`` in bytes per second, ``holds`` what the cache holds in bytes, ``clock`` in Hz,
    ``latency`` of memory in seconds, ``shared`` in bytes of a multiprocessor; FLOPs per second of products in
    16 bits, in TF32 and in plain float32.
    """

    name: str
    processors: int
    clock: float
    memory: float
    cache: float
    holds: int
    latency: float
    shared: int
    threads: int
    rates: dict[str, float]


DEVICES = {
    "sm_80": Device("A100", 108, 1.41e9, 1.75e12, 4.0e12, 40 << 20, 7e-7, 164 << 10, 2048,
                    {"16": 312e12, "tf32": 156e12, "ieee": 19.5e12}),
    "sm_86": Device("RTX 3090", 82, 1.70e9, 0.85e12, 2.0e12, 6 << 20, 7e-7, 100 << 10, 1536,
                    {"16": 71e12, "tf32": 35e12, "ieee": 35e12}),
    "sm_90": Device("H100", 132, 1.755e9, 3.0e12, 5.7e12, 50 << 20, 6e-7, 228 << 10, 2048,
                    {"16": 989e12, "tf32": 494e12, "ieee": 67e12}),
    "sm_100": Device("B200", 148, 1.85e9, 7.2e12, 1.1e13, 126 << 20, 7e-7, 228 << 10, 2048,
                     {"16": 2250e12, "tf32": 1100e12, "ieee": 80e12}),
    "gfx942": Device("MI300X", 304, 2.1e9, 4.3e12, 1.0e13, 256 << 20, 9e-7, 64 << 10, 2048,
                     {"16": 1307e12, "tf32": 163e12, "ieee": 163e12}),
}  # fmt: skip

# Cycles of barriers and of a softmax, once for each tile and walk through its channels; of a chunk in a loop.
_TILE_CYCLES, _CHUNK_CYCLES = 500, 120
# What products of fewer than 64 pixels reach of the matrix rate, and all of them beside everything else.
_NARROW, _REACHED = 0.3, 0.6
# Share of the cache that such tiles get.
_CACHED = 0.6
_LAUNCH_SECONDS = 2.5e-6


class Walk(NamedTuple):
    """What a kernel does with a map's elements, in maps, banks of rows, and products.

    ``again``: maps that the second walk through the channels needs. ``first``, ``second``: banks that each
    walk loads for each tile. ``products``: with one row each, per element.
    """

    reads: int
    writes: int
    again: int
    first: int
    second: int
    products: int


WALKS = {
    "tokenize_forward": Walk(1, 0, 1, 1, 0, 2),
    "tokenize_backward": Walk(1, 1, 1, 2, 2, 5),
    "project_forward": Walk(1, 1, 1, 1, 1, 2),
    "project_backward": Walk(2, 1, 2, 2, 1, 5),
    "project_tokenize_forward": Walk(1, 1, 1, 2, 1, 4),
    "project_tokenize_backward": Walk(2, 1, 2, 4, 3, 10),
}


class Prediction(NamedTuple):
    """Seconds in all and by each term, and what they were made of."""

    seconds: float
    memory: float
    cache: float
    products: float
    waiting: float
    programs_each: int
    in_flight: int


def residents(device: Device, launch: Launch, compiled: Compiled) -> int:
    """Programs that a multiprocessor can run at once."""
    threads = launch.options["num_warps"] * (64 if device.name == "MI300X" else 32)
    registers = 8 * -(-(compiled.registers or 1) // 8) * threads
    file = (128 << 10) if device.name == "MI300X" else 1 << 16
    limits = [file // registers, device.threads // threads, 32]
    if compiled.shared:
        limits.append(device.shared // (compiled.shared + 1024))
    return max(1, min(limits))


def predicted(device: Device, launch: Launch, compiled: Compiled, shape: tuple[int, int, int, int],
              kind: str) -> Prediction:  # fmt: skip
    """Of a kernel that walks over maps of ``shape`` (B, N, C, L)."""
    batch, pixels, channels, tokens = shape
    walk, constants = WALKS[launch.kernel], launch.constants
    item = 2 if kind == "16" else 4
    tile, chunk, keep = constants["TILE"], constants["CHUNK"], constants["KEEP"]
    # project forward sums nothing over pixels: a program has one tile, and all chunks are its own.
    adds_up = launch.kernel != "project_forward"
    blocks, own, loops = (constants[name] if adds_up else 1 for name in ("BLOCKS", "OWN", "LOOPS"))
    chunks = -(-channels // chunk)
    map_bytes = batch * pixels * channels * item
    tiles = batch * -(-pixels // tile)
    bank_bytes = channels * max(tokens, 16) * item

    at_once = residents(device, launch, compiled)
    sums = 0 if walk.writes and walk.reads == 1 and not adds_up else walk.products // 2
    part_bytes = 2 * 4 * sums * channels * tokens * launch.programs // blocks
    # What is read again is in the cache as far as all tiles under way are.
    live = walk.reads * at_once * device.processors * tile * channels * item
    missed = 0.0 if keep else walk.again * max(0.0, 1 - _CACHED * device.holds / live)
    memory = ((walk.reads + walk.writes + missed) * map_bytes + part_bytes) / device.memory
    moved = (walk.reads * blocks + walk.writes + (0 if keep else walk.again)) * map_bytes
    held = keep and launch.kernel == "tokenize_forward"
    banks = walk.second + (0 if held else walk.first * blocks)
    cache = (moved + banks * bank_bytes * tiles) / device.cache
    rate = device.rates[kind] * _REACHED * (1.0 if tile >= 64 or kind == "ieee" else _NARROW)
    padded = max(tokens, 16)
    products = 2 * padded * walk.products * (map_bytes // item) / rate

    # A program waits once for what is in flight; more stages wait for more of it at once.
    ahead = max(launch.options["num_stages"] - 1, 1)
    in_flight = walk.reads * tile * (channels if keep else chunk) * item * (ahead if loops > 1 or keep else 1)
    if keep:
        cycle = device.latency / (ahead if adds_up else 1) + 2 * _TILE_CYCLES / device.clock
    else:
        step = max(device.latency / ahead, _CHUNK_CYCLES / device.clock)
        second = loops * step if not adds_up or loops > 1 else own * device.latency / 2
        cycle = (chunks + 1) * step + second + 2 * _TILE_CYCLES / device.clock
        if not adds_up:
            cycle += chunks * step
    waves = -(-launch.programs // (device.processors * at_once))
    waiting = waves * cycle * -(-tiles * blocks // launch.programs)
    terms = (memory, cache, products, waiting)
    seconds = sum(term**4 for term in terms) ** 0.25 + _LAUNCH_SECONDS
    return Prediction(seconds, *terms, at_once, at_once * in_flight)

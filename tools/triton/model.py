"""A model of a launch's time: bytes, products, programs that run at once, and waiting for loads.

It ranks launch settings, and tells which term to expect. README.md says how far it was from measurements.
Its terms are times that overlap, so their fourth powers add up: the largest one counts most.
"""

from __future__ import annotations

from typing import NamedTuple

from tools.triton.calls import Call, Launch
from tools.triton.compiled import Compiled
from tools.triton.gpus import Gpu
from vt_fast.backends.triton import settings

# Cycles of barriers and of a softmax, once for each tile and walk through its channels; of a chunk in a loop.
_TILE_CYCLES, _CHUNK_CYCLES = 500, 120
# The share of the matrix rate that products reach, and of that, those of fewer than 64 pixels.
_REACHED, _NARROW = 0.6, 0.3
# The share of the cache that tiles get that are read again.
_CACHED = 0.6
_LAUNCH_SECONDS = 2.5e-6


class Walk(NamedTuple):
    """What a kernel does with a map.

    Args:
        reads: maps read once.
        writes: maps written.
        again: maps that the second walk through the channels reads.
        first: rows of small operands that the first walk loads for each tile, in multiples of L.
        second: the same for the second walk.
        products: multiply-accumulates per element of the map, in multiples of L.
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
    """Seconds in total, its four terms, and the least that the compulsory bytes take.

    ``programs_each`` run at once on a multiprocessor and have ``in_flight`` bytes of loads under way.
    """

    total: float
    memory: float
    cache: float
    products: float
    waiting: float
    floor: float
    programs_each: int
    in_flight: int


def compulsory_bytes(kernel: str, call: Call) -> int | None:
    """Bytes of the maps that a kernel reads or writes; None if it handles no maps."""
    walk = WALKS.get(kernel)
    return None if walk is None else (walk.reads + walk.writes) * call.map_bytes


def programs_at_once(gpu: Gpu, launch: Launch, compiled: Compiled) -> int:
    """Programs that a multiprocessor can run at once."""
    threads = launch.options["num_warps"] * int(gpu.target.warp_size)
    registers = 8 * settings.ceil_div(compiled.registers or 1, 8) * threads
    limits = [gpu.registers // registers, gpu.threads // threads, 32]
    if compiled.shared:
        limits.append(gpu.shared_bytes // (compiled.shared + 1024))
    return max(1, min(limits))


def predict(gpu: Gpu, launch: Launch, compiled: Compiled, call: Call) -> Prediction:
    """The time of the call's main kernel; of float32 products with torch's TF32 switch as it is."""
    batch, pixels, channels, tokens = call.shape
    walk, constants = WALKS[launch.kernel], launch.constants
    kind, item = settings.kind(call.torch_dtype), call.torch_dtype.itemsize
    tile, chunk, keep = constants["TILE"], constants["CHUNK"], constants["KEEP"]
    # project_forward sums nothing over pixels: a program has one tile and all of its chunks.
    adds_up = launch.kernel != "project_forward"
    blocks, own, loops = (constants[name] if adds_up else 1 for name in ("BLOCKS", "OWN", "LOOPS"))
    chunks = settings.ceil_div(channels, chunk)
    tiles = batch * settings.ceil_div(pixels, tile)
    rows = max(tokens, 16)

    at_once = programs_at_once(gpu, launch, compiled)
    sums = 0 if walk.writes and walk.reads == 1 and not adds_up else walk.products // 2
    part_bytes = 2 * 4 * sums * channels * tokens * launch.programs // blocks
    # The second read hits the cache as far as it holds all tiles under way.
    live = walk.reads * at_once * gpu.processors * tile * channels * item
    missed = 0.0 if keep else walk.again * max(0.0, 1 - _CACHED * gpu.cache_bytes / live)
    memory = ((walk.reads + walk.writes + missed) * call.map_bytes + part_bytes) / gpu.memory
    moved = (walk.reads * blocks + walk.writes + (0 if keep else walk.again)) * call.map_bytes
    held = keep and launch.kernel == "tokenize_forward"
    operands = walk.second + (0 if held else walk.first * blocks)
    cache = (moved + operands * channels * rows * item * tiles) / gpu.cache
    rate = gpu.rates[kind] * _REACHED * (1.0 if tile >= 64 or kind == "ieee" else _NARROW)
    products = 2 * rows * walk.products * (call.map_bytes // item) / rate

    # A program waits once for what is in flight; more stages wait for more of it at once.
    ahead = max(launch.options["num_stages"] - 1, 1)
    in_flight = walk.reads * tile * (channels if keep else chunk) * item * (ahead if loops > 1 or keep else 1)
    cycle = 2 * _TILE_CYCLES / gpu.clock
    if keep:
        cycle += gpu.latency / (ahead if adds_up else 1)
    else:
        step = max(gpu.latency / ahead, _CHUNK_CYCLES / gpu.clock)
        second = loops * step if not adds_up or loops > 1 else own * gpu.latency / 2
        cycle += (chunks + 1 if adds_up else 2 * chunks + 1) * step + second
    waves = settings.ceil_div(launch.programs, gpu.processors * at_once)
    waiting = waves * cycle * settings.ceil_div(tiles * blocks, launch.programs)
    terms = (memory, cache, products, waiting)
    total = sum(term**4 for term in terms) ** 0.25 + _LAUNCH_SECONDS
    floor = (walk.reads + walk.writes) * call.map_bytes / gpu.memory
    return Prediction(total, *terms, floor, at_once, at_once * in_flight)

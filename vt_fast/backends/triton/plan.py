"""How a call is cut into programs: by shapes, dtype and the number of multiprocessors alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from vt_fast.backends.triton.library import INTERPRETED

# Programs that should be there for each multiprocessor, so that loads of one overlap products of another.
_PROGRAMS_EACH = 4
# Multiprocessors that the interpreter pretends to have.
_INTERPRETED_PROCESSORS = 4
# Numbers of float32 that a program can add up in registers, beside all else: found by compiling, see
# benchmarks/offline.py. Products that are not taken by matrix instructions need more registers themselves.
_FORWARD_SUMS, _BACKWARD_SUMS = 16 << 10, 8 << 10


@dataclass(frozen=True)
class Setting:
    """Pixels of a tile, channels of a chunk, chunks of a program, and what Triton is told."""

    tile: int
    chunk: int
    own: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    def blocks(self, channels: int) -> int:
        """Programs that share the channels."""
        return ceil_div(ceil_div(channels, self.chunk), self.own)


def ceil_div(number: int, by: int) -> int:
    """Rounded up."""
    return -(-number // by)


def power_of_two(number: int, least: int = 1) -> int:
    """The next one from ``number`` on, and from ``least``."""
    return max(least, 1 << max(number - 1, 0).bit_length())


def setting(channels: int, sums: int, dtype: torch.dtype, *, backward: bool) -> Setting:
    """For maps of ``channels`` and ``sums`` numbers added up for each channel."""
    budget = _BACKWARD_SUMS if backward else _FORWARD_SUMS
    if dtype.itemsize > 2:
        budget //= 4
    chunk = min(64 if dtype.itemsize <= 2 else 32, power_of_two(channels, 16))
    while chunk > 16 and chunk * sums > budget:
        chunk //= 2
    chunks = ceil_div(channels, chunk)
    own = max(1, min(chunks, budget // (chunk * sums)))
    own = ceil_div(chunks, ceil_div(chunks, own))  # about as many for each program
    return Setting(tile=32, chunk=chunk, own=own, warps=8, stages=2)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors (compute units) of a device."""
    if INTERPRETED:
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def splits(x: Tensor, pixels: int, items: int, tile: int, part_bytes: int) -> tuple[int, int]:
    """Parts that the pixels of a sample are cut into, and pixels of each, a multiple of the tile.

    So many that the device is busy, but not so many that what the parts leave behind, ``part_bytes`` for
    each, is over 5 % of the map.
    """
    wanted = ceil_div(processors(x.device) * _PROGRAMS_EACH, items)
    affordable = max(1, int(0.05 * x.numel() * x.element_size() // max(part_bytes, 1)))
    count = max(1, min(wanted, affordable, ceil_div(pixels, tile)))
    each = ceil_div(ceil_div(pixels, count), tile) * tile
    return ceil_div(pixels, each), each

"""Bags of different sizes: how their pixels are cut into pieces, and sums over a bag's pieces.

Nothing waits for the device: the host knows how many pieces there are at most, not how large the bags are.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vt_fast.backends.triton.schedule import launch
from vt_fast.backends.triton.settings import ceil_div, power_of_two
from vt_fast.layout import bag_bounds


class Bags(NamedTuple):
    """Pieces as a kernel's argument: each one's bag, first pixel, and the pixel after its last; or None."""

    bag: Any
    start: Any
    stop: Any


NO_BAGS = Bags(None, None, None)


class Pieces(NamedTuple):
    """Pieces of bags. Bag b has those from ``first[b]`` to ``first[b + 1]``; further ones are empty."""

    bags: Bags
    first: Tensor
    count: int
    bag_count: int


def cut_bags(offsets: Tensor, total: int, each: int) -> Pieces:
    """Pieces of ``each`` pixels, or what is left of a bag.

    Offsets out of range are clamped, and those that fall are taken as the largest before.

    Raises:
        ValueError: on a CPU, they do not start at 0, fall, or do not end at ``total``.
    """
    if offsets.device.type == "cpu":
        bag_bounds(offsets, total)
    bag_count = offsets.shape[0] - 1
    count = ceil_div(total, each) + bag_count if bag_count else 0
    bounds = offsets.clamp(0, total).cummax(0).values
    first = torch.zeros(bag_count + 1, dtype=torch.int64, device=offsets.device)
    torch.cumsum((bounds.diff() + (each - 1)) // each, 0, out=first[1:])
    piece = torch.arange(count, device=offsets.device)
    bag = torch.searchsorted(first, piece, right=True).sub_(1).clamp_(max=max(bag_count - 1, 0))
    start = bounds[bag] + (piece - first[bag]) * each
    stop = torch.minimum(start + each, bounds[bag + 1]).maximum(start) if count else start
    dtype = torch.int32 if total + each < 2**31 else torch.int64
    return Pieces(Bags(bag.to(torch.int32), start.to(dtype), stop.to(dtype)), first, count, bag_count)


@triton.jit
def piece_of(bags, piece):
    """A piece's bag, first pixel, and the pixel after its last."""
    return tl.load(bags.bag + piece).to(tl.int64), tl.load(bags.start + piece), tl.load(bags.stop + piece)


@triton.jit
def sum_pieces(parts, first, sums, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """sums (bags, WIDTH) of parts (pieces, WIDTH). Grid: blocks of columns x bags."""
    BLOCKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    bag = program // BLOCKS
    column = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    there = column < WIDTH
    added = tl.zeros((BLOCK,), parts.dtype.element_ty)
    for piece in tl.range(tl.load(first + bag), tl.load(first + bag + 1)):
        added += tl.load(parts + piece * WIDTH + column, mask=there, other=0.0)
    tl.store(sums + bag.to(tl.int64) * WIDTH + column, added.to(sums.dtype.element_ty), mask=there)


def summed_by_bag(parts: Tensor, pieces: Pieces, operand: Tensor) -> Tensor:
    """Parts (1, pieces, ...) summed up for each bag, as the gradient of an operand (bags, ...)."""
    sums = torch.empty_like(operand, memory_format=torch.contiguous_format)
    width = parts[0, 0].numel() if pieces.count else 1
    block = min(256, power_of_two(width, 16))
    grid = (ceil_div(width, block) * pieces.bag_count,)
    launch(sum_pieces, grid, parts, pieces.first, sums, WIDTH=width, BLOCK=block)
    return sums

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
    """Pieces of ``each`` pixels, or what is left of a bag. All pixels are in one, if there is a bag.

    Offsets out of range are clamped, those that fall are taken as the largest before, and the first and the
    last one as 0 and ``total``.

    Raises:
        ValueError: on a CPU, they do not start at 0, fall, or do not end at ``total``.
    """
    if offsets.device.type == "cpu":
        bag_bounds(offsets, total)
    bag_count = offsets.shape[0] - 1
    count = ceil_div(total, each) + bag_count if bag_count else 0
    dtype = torch.int32 if total + each < 2**31 else torch.int64
    bag = torch.empty(count, dtype=torch.int32, device=offsets.device)
    start, stop = (torch.empty_like(bag, dtype=dtype) for _ in range(2))
    first = torch.empty(bag_count + 1, dtype=torch.int64, device=offsets.device)
    bags = Bags(bag, start, stop)
    launch(cut_each_bag, (bag_count + 1,), offsets.contiguous(), bags, first, total, each, bag_count, count)
    return Pieces(bags, first, count, bag_count)


# Bags, or pieces, that a program looks at together.
_TOGETHER = tl.constexpr(128)


@triton.jit(do_not_specialize=["total", "each", "bag_count", "count"])
def cut_each_bag(offsets, bags, first, total, each, bag_count, count):
    """Grid: bags, and a program for the pieces that are left over, which are empty.

    Each program goes through the offsets before its bag: there is one launch, whatever their number.
    """
    bag = tl.program_id(0)
    of_block = tl.arange(0, _TOGETHER)
    total = total.to(tl.int64)
    bound = tl.zeros((), tl.int64)
    begin = bound
    end = bound
    piece = bound
    for block in tl.range(0, bag + 1, _TOGETHER):
        b = block + of_block
        low = tl.load(offsets + b, mask=(b > 0) & (b < bag_count), other=0).to(tl.int64)
        high = tl.load(offsets + b + 1, mask=b + 1 < bag_count, other=0).to(tl.int64)
        low = tl.maximum(tl.associative_scan(tl.minimum(low, total), 0, larger), bound)
        high = tl.where(b + 1 < bag_count, tl.maximum(tl.minimum(high, total), low), total)
        piece += tl.sum(tl.where(b < bag, (high - low + (each - 1)) // each, 0), 0)
        begin += tl.sum(tl.where(b == bag, low, 0), 0)
        end += tl.sum(tl.where(b == bag, high, 0), 0)
        bound = tl.max(low, 0)
    tl.store(first + bag, piece)
    pieces = (end - begin + (each - 1)) // each
    if bag == bag_count:
        begin = total
        end = total
        pieces = count - piece
    for block in tl.range(0, pieces, _TOGETHER):
        p = block + of_block
        there = p < pieces
        start = tl.minimum(begin + p.to(tl.int64) * each, end)
        stop = tl.minimum(start + each, end)
        to = piece + p
        tl.store(bags.bag + to, tl.minimum(bag, bag_count - 1), mask=there)
        tl.store(bags.start + to, start.to(bags.start.dtype.element_ty), mask=there)
        tl.store(bags.stop + to, stop.to(bags.stop.dtype.element_ty), mask=there)


@triton.jit
def larger(a, b):
    """For scans."""
    return tl.maximum(a, b)


def clear_without_bags(offsets: Tensor | None, *results: Tensor | None) -> None:
    """Set results to 0 if there are no bags: then no program writes them, whatever pixels there are."""
    if offsets is not None and offsets.shape[0] == 1:
        for each in results:
            if each is not None:
                each.zero_()


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

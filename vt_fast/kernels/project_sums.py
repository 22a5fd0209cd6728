"""Sums over pixels that the backwards of project and project_tokenize leave, [channels, rows] for each chunk.

A program whose chunks are all its own keeps them in registers from tile to tile; one with a loop over chunks
adds each tile's to memory.
"""

import triton
import triton.language as tl

from vt_fast.kernels.attention import own_channels
from vt_fast.kernels.tiles import add_to_last


@triton.jit
def zero_sums(COUNT: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr):
    """COUNT chunks' sums before the first tile."""
    sums = ()
    for _i in tl.static_range(COUNT):
        sums = sums + (tl.zeros((CHUNK, ROWS), ACC),)
    return sums


@triton.jit
def leave_dkeys(
    part_dkeys,
    part,
    channel,
    row,
    row_ok,
    sums,
    follows,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    LOOPS: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """A tuple of what goes on to the next tile: the sums, or nothing where a loop over chunks stores them."""
    if LOOPS > 1:
        store_dkeys(part_dkeys, part, channel, row, row_ok, sums, follows, CHANNELS, ROWS, ONE_TILE)
        return ()
    else:
        return (sums,)


@triton.jit
def leave_dvalues(
    part_dvalues,
    part,
    channel,
    head,
    token,
    row_ok,
    sums,
    follows,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    LOOPS: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """The same for dvalues."""
    if LOOPS > 1:
        store_dvalues(
            part_dvalues, part, channel, head, token, row_ok, sums, follows, CHANNELS, HEADS, TOKENS, ONE_TILE
        )
        return ()
    else:
        return (sums,)


@triton.jit
def store_dkeys(
    part_dkeys,
    part,
    channel,
    row,
    row_ok,
    sums,
    follows,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """Sums [channels, rows] of a part, onto those of the tile before if one ``follows``.

    part_dkeys (parts, ROWS, CHANNELS).
    """
    to = part_dkeys + part * (ROWS * CHANNELS) + row[None, :] * CHANNELS + channel[:, None]
    there = (channel < CHANNELS)[:, None] & row_ok[None, :]
    sums = add_to_last(to, there, sums, follows, 1.0, ONE_TILE)
    tl.store(to, sums.to(part_dkeys.dtype.element_ty), mask=there)


@triton.jit
def store_dvalues(
    part_dvalues,
    part,
    channel,
    head,
    token,
    row_ok,
    sums,
    follows,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """Sums [channels, rows] of a part, onto those of the tile before if one ``follows``.

    part_dvalues (parts, TOKENS, CHANNELS).
    """
    to = part_dvalues + part * (TOKENS * CHANNELS) + token[None, :] * CHANNELS + channel[:, None]
    there = (channel < CHANNELS)[:, None] & row_ok[None, :]
    if HEADS > 1:
        there = there & own_channels(channel, head, CHANNELS, HEADS)
    sums = add_to_last(to, there, sums, follows, 1.0, ONE_TILE)
    tl.store(to, sums.to(part_dvalues.dtype.element_ty), mask=there)


@triton.jit
def store_dbias(part_dtoken_bias, part, row, row_ok, sums, ROWS: tl.constexpr):
    """Sums [rows] of a part. part_dbias (parts, ROWS)."""
    tl.store(part_dtoken_bias + part * ROWS + row, sums.to(part_dtoken_bias.dtype.element_ty), mask=row_ok)

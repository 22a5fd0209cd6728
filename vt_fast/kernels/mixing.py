"""Small products of the projector's values with the tokenizer's operands, [rows, queries].

The map Y = R + P V (R: the residual) is not needed for its tokens: its logits are R W^T + P (V W^T), and
pooled with the weights A it is A^T R + (A^T P) V. So V meets the few queries before the pixels, and the few
A^T P after them.
"""

import triton
import triton.language as tl

from vt_fast.kernels.attention import load_values
from vt_fast.kernels.tiles import load_rows, product


@triton.jit
def mix(
    values,
    head,
    token,
    row_ok,
    others,
    query,
    query_ok,
    channels,
    OUT_CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """V times the transpose of others (QUERIES, WIDTH), of which the first OUT_CHANNELS columns count."""
    RAGGED: tl.constexpr = OUT_CHANNELS % CHUNK != 0
    sums = tl.zeros((ROWS, QUERIES_PADDED), ACC)
    for m in tl.range((OUT_CHANNELS + CHUNK - 1) // CHUNK):
        k = m * CHUNK + channels
        rows = load_values(values, head, token, row_ok, k, OUT_CHANNELS, HEADS, RAGGED)
        other = load_rows(others, query, WIDTH, k, query_ok, k < OUT_CHANNELS, RAGGED)
        sums = product(tl.trans(rows), other, sums, PRECISION, WIDEN)
    return sums


@triton.jit
def add_mixed(operand, few, onto, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """onto [channels, columns] + operand [channels, rows] times the few [rows, columns], which are sums.

    An operand of 16 bits takes them as two numbers of its dtype, relative to each column's largest: what is
    left of the first one's rounding is the second.
    """
    if operand.dtype.primitive_bitwidth > 16:
        return product(operand, few, onto, PRECISION, WIDEN)
    else:
        top = tl.max(tl.abs(few), 0)
        few = tl.where(top[None, :] > 0, few / top[None, :], 0.0)
        first, second = two_of(few, operand.dtype)
        sums = tl.zeros((operand.shape[0], few.shape[1]), onto.dtype)
        sums = product(operand, second, sums, PRECISION, WIDEN)
        return onto + product(operand, first, sums, PRECISION, WIDEN) * top[None, :]


@triton.jit
def kept_rows(sums, LOOPS: tl.constexpr):
    """What sums of a tile are added to: those of the tiles before, unless these are in memory already."""
    if LOOPS > 1:
        return tl.zeros_like(sums)
    else:
        return sums


@triton.jit
def two_of(values, NARROW: tl.constexpr):
    """Values rounded to a narrow dtype, and what is left of them in it."""
    first = values.to(NARROW)
    return first, (values - first.to(values.dtype)).to(NARROW)


@triton.jit
def add_outer(left, right, onto, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """onto [rows, queries] + left [pixels, rows] transposed times right [pixels, queries].

    Where right has more digits than left, it counts as two numbers of left's dtype.
    """
    if right.dtype.primitive_bitwidth > left.dtype.primitive_bitwidth:
        first, second = two_of(right, left.dtype)
        onto = add_outer_of_same(left, second, onto, PRECISION, WIDEN)
        return add_outer_of_same(left, first, onto, PRECISION, WIDEN)
    else:
        return add_outer_of_same(left, right, onto, PRECISION, WIDEN)


@triton.jit
def add_outer_of_same(left, right, onto, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """The same for operands of one dtype.

    A product of few rows and columns over many pixels would have every warp take all pixels: here each
    takes some, and their sums are added up.
    """
    TILE: tl.constexpr = left.shape[0]
    EACH: tl.constexpr = 32
    if TILE <= EACH:
        return product(tl.trans(left), right, onto, PRECISION, WIDEN)
    else:
        groups = tl.permute(tl.reshape(left, (TILE // EACH, EACH, left.shape[1])), (0, 2, 1))
        others = tl.reshape(right, (TILE // EACH, EACH, right.shape[1]))
        sums = tl.zeros((TILE // EACH, left.shape[1], right.shape[1]), onto.dtype)
        return onto + tl.sum(product(groups, others, sums, PRECISION, WIDEN), 0)

"""Which pixels a program works on, and which of them take part."""

import triton
import triton.language as tl

from vt_fast.kernels.tiles import indices


@triton.jit
def taking_part(
    start,
    end,
    first,
    mask,
    pixel_bias,
    TILE: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_PIXEL_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
):
    """A tile's pixels, whether they are there, whether they take part, and their log weights (0 for none).

    ``first``: the sample's first entry in mask and pixel_bias.
    """
    n = start + indices(TILE, WIDE)
    inside = n < end
    ok = inside
    if HAS_MASK:
        ok = ok & (tl.load(mask + first + n, mask=ok, other=0) != 0)
    if HAS_PIXEL_BIAS:
        weight = tl.load(pixel_bias + first + n, mask=ok, other=-float("inf")).to(ACC)
        ok = ok & (weight != -float("inf"))
        weight = tl.where(ok, weight, 0.0)
    else:
        weight = tl.zeros((TILE,), ACC)
    return n, inside, ok, weight


@triton.jit
def load_entries(table, n, ok, COLUMNS: tl.constexpr, COLUMNS_PADDED: tl.constexpr):
    """[pixels, columns] of the position table; 0 where there is none."""
    p = tl.arange(0, COLUMNS_PADDED)
    return tl.load(
        table + n[:, None] * COLUMNS + p[None, :], mask=ok[:, None] & (p < COLUMNS)[None, :], other=0.0
    )

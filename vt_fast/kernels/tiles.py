"""What all kernels are made of: where pixels and channels lie, products, and softmaxes."""

import triton
import triton.language as tl

# How a map lies in memory.
CHANNELS_UNIT = tl.constexpr(0)  # channels side by side: (B, N, C) and channels_last
PIXELS_UNIT = tl.constexpr(1)  # pixels side by side: NCHW
ANY = tl.constexpr(2)  # neither, or rows of pixels that do not follow each other evenly


# Arguments that say how large maps are. Triton would compile anew where one is 1 or becomes a multiple of 16,
# from which no code gets better: what is aligned they are told by ALIGN and PIXEL_ALIGN.
SIZES = [
    *("x_batch", "y_batch", "r_batch", "g_batch", "dx_batch", "dr_batch"),
    *("pixels", "batch", "splits", "parts", "tiles_each", "per_part", "rows"),
]


@triton.jit
def indices(COUNT: tl.constexpr, WIDE: tl.constexpr):
    """0, 1, ...; WIDE: what is made of them may exceed 32 bits."""
    if WIDE:
        return tl.arange(0, COUNT).to(tl.int64)
    else:
        return tl.arange(0, COUNT)


@triton.jit
def pixel_offsets(pixels, width, row, column, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    """Offsets of pixels in a sample. Strides of 1 are known to the compiler, others come in ALIGN / 16."""
    if LAYOUT == PIXELS_UNIT:
        return pixels
    elif LAYOUT == CHANNELS_UNIT:
        return pixels * (column // 16 * ALIGN)
    else:
        return (pixels // width) * row + (pixels % width) * column


@triton.jit
def channel_offsets(channels, stride, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    """Offsets of channels."""
    if LAYOUT == CHANNELS_UNIT:
        return channels
    elif LAYOUT == PIXELS_UNIT:
        return channels * (stride // 16 * ALIGN)
    else:
        return channels * stride


@triton.jit
def channel_base(head, stride, CHANNELS: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr):
    """Offset of the first of a head's CHANNELS channels."""
    return channel_offsets(head * CHANNELS, stride, LAYOUT, ALIGN)


@triton.jit
def load_tile(base, pixel_offset, channel_offset, pixel_ok, channel_ok, MASK_CHANNELS: tl.constexpr):
    """[pixels, channels] of a map; 0 where there is none."""
    at = base + pixel_offset[:, None] + channel_offset[None, :]
    if MASK_CHANNELS:
        return tl.load(at, mask=pixel_ok[:, None] & channel_ok[None, :], other=0.0)
    else:
        return tl.load(at, mask=pixel_ok[:, None], other=0.0)


@triton.jit
def store_tile(base, pixel_offset, channel_offset, pixel_ok, channel_ok, value, MASK_CHANNELS: tl.constexpr):
    """The same, stored in the map's dtype."""
    at = base + pixel_offset[:, None] + channel_offset[None, :]
    value = value.to(base.dtype.element_ty)
    if MASK_CHANNELS:
        tl.store(at, value, mask=pixel_ok[:, None] & channel_ok[None, :])
    else:
        tl.store(at, value, mask=pixel_ok[:, None])


@triton.jit
def load_chunk(
    base,
    pixel_offset,
    channels,
    stride,
    pixel_ok,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
):
    """load_tile of some channels of a map that has CHANNELS."""
    across = channel_offsets(channels, stride, LAYOUT, ALIGN)
    return load_tile(base, pixel_offset, across, pixel_ok, channels < CHANNELS, MASK_CHANNELS)


@triton.jit
def chunk_again(
    kept,
    i: tl.constexpr,
    base,
    pixel_offset,
    channels,
    stride,
    pixel_ok,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
    KEEP: tl.constexpr,
):
    """A chunk for the second walk: the i-th of those that were kept, or loaded once more."""
    if KEEP:
        return kept[i]
    else:
        return load_chunk(
            base, pixel_offset, channels, stride, pixel_ok, CHANNELS, LAYOUT, ALIGN, MASK_CHANNELS
        )


@triton.jit
def store_chunk(
    base,
    pixel_offset,
    channels,
    stride,
    pixel_ok,
    value,
    CHANNELS: tl.constexpr,
    LAYOUT: tl.constexpr,
    ALIGN: tl.constexpr,
    MASK_CHANNELS: tl.constexpr,
):
    """store_tile of some channels of a map that has CHANNELS."""
    across = channel_offsets(channels, stride, LAYOUT, ALIGN)
    store_tile(base, pixel_offset, across, pixel_ok, channels < CHANNELS, value, MASK_CHANNELS)


@triton.jit
def load_rows(base, rows, row_stride, channels, row_ok, channel_ok, MASK_CHANNELS: tl.constexpr):
    """[channels, rows] of a small operand, rows of channels side by side; 0 where there is none."""
    at = base + channels[:, None] + rows[None, :] * row_stride
    if MASK_CHANNELS:
        return tl.load(at, mask=channel_ok[:, None] & row_ok[None, :], other=0.0)
    else:
        return tl.load(at, mask=row_ok[None, :], other=0.0)


@triton.jit
def add_to_last(to, there, added, follows, scale, ONE_TILE: tl.constexpr):
    """added, onto the sums that the program's tile before has left, times scale, if one ``follows``.

    They are in the cache. The program that wrote them has passed a barrier since.
    """
    if ONE_TILE:
        return added
    else:
        return added + tl.load(to, mask=tl.where(follows, there, False), other=0.0).to(added.dtype) * scale


@triton.jit
def product(a, b, onto, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """onto + a b. WIDEN: the interpreter multiplies bfloat16 as if it were integers."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, onto, input_precision=PRECISION, out_dtype=onto.dtype)


@triton.jit
def finite(highest, LIMIT: tl.constexpr):
    """What exponents are taken relative to: an infinite one would make NaN of what is 0 or infinite."""
    return tl.minimum(tl.maximum(highest, -LIMIT), LIMIT)

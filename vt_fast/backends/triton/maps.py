"""Where feature maps lie in memory: for the host, how they are passed; for kernels, how they are read."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vt_fast.layout import per_pixel

_INT32 = 2**31 - 1


class Map(NamedTuple):
    """A map as a kernel's argument: its strides, in units of ALIGN where the layout knows one of them.

    ``layout``: "channels" lie side by side ((B, N, C) and channels_last), "pixels" do (NCHW), or "any".

    Triton compiles anew for numbers that are 1 or multiples of 16, also within a tuple. So strides are given
    16-fold, and as 0 where the layout makes no use of them: then all sizes share a kernel.
    """

    data: Any
    batch: Any
    row: Any
    column: Any
    channel: Any
    layout: Any


NO_MAP = Map(None, None, None, None, None, None)
LAYOUTS = ("channels", "pixels", "any")
_CONSTANTS = {layout: tl.constexpr(layout) for layout in LAYOUTS}


class Rows(NamedTuple):
    """A small operand as a kernel's argument: dense rows, and the stride of samples, 0 if they share it."""

    data: Any
    batch: Any


class PerPixel(NamedTuple):
    """What goes with the pixels: mask (B, N) in bytes, bias (B, N), extra_values (N, EXTRA); or None."""

    mask: Any
    bias: Any
    extra_values: Any


class Tile(NamedTuple):
    """Some pixels of a map in a kernel: the sample's address, the pixels' offsets, the channels' stride."""

    data: Any
    at: Any
    channel: Any


@triton.jit
def tile_of(m, sample, channel, n, width, cfg: tl.constexpr):
    """Pixels n of a sample; ``channel`` is the first. Strides that are 1 are known to the compiler."""
    if m.data is None:
        return Tile(0, 0, 0)
    elif m.layout == "channels":
        data = m.data + channel + sample * (m.batch // 16 * cfg.ALIGN)
        return Tile(data, n * (m.column // 16 * cfg.ALIGN), 1)
    elif m.layout == "pixels":
        stride = m.channel // 16 * cfg.ALIGN
        return Tile(m.data + channel * stride + sample * (m.batch // 16 * cfg.ALIGN), n, stride)
    else:
        data = m.data + channel * m.channel + sample * (m.batch // 16 * cfg.ALIGN)
        return Tile(data, (n // width) * m.row + (n % width) * m.column, m.channel)


@triton.jit
def load_chunk(tile, channels, pixel_ok, CHANNELS: tl.constexpr, RAGGED: tl.constexpr):
    """[pixels, channels] of a map that has CHANNELS; 0 where there is none. RAGGED: some may not exist."""
    at = tile.data + tile.at[:, None] + (channels * tile.channel)[None, :]
    if RAGGED:
        return tl.load(at, mask=pixel_ok[:, None] & (channels < CHANNELS)[None, :], other=0.0)
    else:
        return tl.load(at, mask=pixel_ok[:, None], other=0.0)


@triton.jit
def score_places(scores, first, rows, n, pixels):
    """[pixels, rows]: where scores, or their gradients, are. ``first``: the number of the first row."""
    return scores + (first + rows[None, :].to(tl.int64)) * pixels + n[:, None]


@triton.jit
def store_chunk(tile, channels, pixel_ok, value, CHANNELS: tl.constexpr, RAGGED: tl.constexpr):
    """The same, stored in the map's dtype."""
    at = tile.data + tile.at[:, None] + (channels * tile.channel)[None, :]
    value = value.to(tile.data.dtype.element_ty)
    if RAGGED:
        tl.store(at, value, mask=pixel_ok[:, None] & (channels < CHANNELS)[None, :])
    else:
        tl.store(at, value, mask=pixel_ok[:, None])


@triton.jit
def chunk_again(
    kept,
    i,
    which: tl.constexpr,
    tile,
    channels,
    pixel_ok,
    CHANNELS: tl.constexpr,
    RAGGED: tl.constexpr,
    cfg: tl.constexpr,
):
    """A chunk for the second walk: which of the i-th step's that were kept, or loaded once more."""
    if cfg.KEEP:
        return kept[i][which]
    else:
        return load_chunk(tile, channels, pixel_ok, CHANNELS, RAGGED)


class _Strides(NamedTuple):
    """A map's strides in elements: of samples, rows of pixels, pixels in a row, and channels."""

    tensor: Tensor
    batch: int
    row: int
    column: int
    channel: int
    width: int
    layout: str

    def unknown(self) -> tuple[int, ...]:
        """The strides that are not 1 by the layout."""
        if self.layout == "channels":
            return self.batch, self.column
        if self.layout == "pixels":
            return self.batch, self.channel
        return (self.batch,)

    def extent(self, pixels: int, channels: int) -> int:
        """One more than the largest offset in a sample."""
        if pixels == 0:
            return 0
        rows, columns = -(-pixels // self.width) - 1, min(pixels, self.width) - 1
        return 1 + rows * self.row + columns * self.column + (channels - 1) * self.channel

    def argument(self, align: int) -> Map:
        """What a kernel takes."""
        batch, layout = 16 * (self.batch // align), _CONSTANTS[self.layout]
        if self.layout == "channels":
            return Map(self.tensor, batch, 0, 16 * (self.column // align), 0, layout)
        if self.layout == "pixels":
            return Map(self.tensor, batch, 0, 0, 16 * (self.channel // align), layout)
        return Map(self.tensor, batch, self.row, self.column, self.channel, layout)


def _strides(feature_map: Tensor) -> _Strides:
    """Of a map (B, N, C) or (B, C, H, W) in any strides."""
    strides = feature_map.stride()
    if feature_map.dim() == 3:
        (_, width, channels), height = feature_map.shape, 1
        batch, column, channel = strides
        row = width * column
    else:
        _, channels, height, width = feature_map.shape
        batch, channel, row, column = strides
        if width == 1:  # rows are the pixels
            width, height, column = height, 1, row
        if height == 1:
            row = width * column
    if channels == 1:
        channel = 1
    if height * width == 1:
        row = column = 1
    layout = "any"
    if row == width * column:
        layout = "channels" if channel == 1 else "pixels" if column == 1 else "any"
    return _Strides(feature_map, batch, row, column, channel, width, layout)


class Placement(NamedTuple):
    """The maps of a launch as arguments, and what a kernel is told of all of them together.

    ``pixels`` and ``width`` are arguments too: pixels of a sample divided by ``pixel_align``, and pixels in a
    row where a map needs it, else 0. ``layout``: that of all maps, or "any". ``wide``: whether an offset
    within a sample may exceed 32 bits.
    """

    maps: tuple[Map, ...]
    pixels: int
    width: int
    layout: str
    align: int
    pixel_align: int
    wide: bool


def place(pixels: int, channels: int, x: Tensor, *others: Tensor | None) -> Placement:
    """x and the other maps of a launch, ``NO_MAP`` for None; ``channels``: the most that one of them has."""
    found = [_strides(x), *(None if other is None else _strides(other) for other in others)]
    there = [each for each in found if each is not None]
    align = _alignment(there)
    layouts = {each.layout for each in there}
    pixel_align = _pixel_alignment(there[0], pixels, align)
    return Placement(
        tuple(NO_MAP if each is None else each.argument(align) for each in found),
        pixels // pixel_align,
        there[0].width if "any" in layouts else 0,
        layouts.pop() if len(layouts) == 1 else "any",
        align,
        pixel_align,
        max(each.extent(pixels, channels) for each in there) > _INT32,
    )


def _alignment(maps: list[_Strides]) -> int:
    """The largest power of two up to 16 that divides all strides which are not 1.

    Kernels multiply with it, so that a compiler knows how wide it may load: it finds out by itself only
    whether an argument is a multiple of 16.
    """
    for align in (16, 8, 4, 2):
        if all(stride % align == 0 for each in maps for stride in each.unknown()):
            return align
    return 1


def _pixel_alignment(x: _Strides, pixels: int, align: int) -> int:
    """What a kernel multiplies the number of pixels with, so that it knows how wide masks may be."""
    if x.layout == "channels":
        return 1
    # ``align`` is of the strides; where these are of any kind, that of the pixels has nothing to do with it.
    align = align if x.layout == "pixels" else 16
    while pixels % align:
        align //= 2
    return align


def batched(feature_map: Tensor) -> Tensor:
    """A map; (1, total, C) of that of bags."""
    return feature_map[None] if feature_map.dim() == 2 else feature_map


def rows(operand: Tensor | None) -> Rows:
    """(B, rows, C) or (rows, C)."""
    if operand is None:
        return Rows(None, None)
    dense = operand if operand.is_contiguous() else operand.contiguous()
    return Rows(dense, 0 if operand.dim() == 2 else dense.stride(0))


def bias_rows(token_bias: Tensor | None) -> Rows:
    """(B, rows) or (rows,)."""
    if token_bias is None:
        return Rows(None, None)
    dense = token_bias.contiguous()
    return Rows(dense, 0 if token_bias.dim() == 1 else dense.stride(0))


def pixel_operands(mask: Tensor | None, pixel_bias: Tensor | None, extra_values: Tensor | None) -> PerPixel:
    """mask and pixel_bias (B, N) or (B, H, W), extra_values (N, P)."""
    flat, bias = per_pixel(mask), per_pixel(pixel_bias)
    return PerPixel(
        None if flat is None else flat.contiguous().view(torch.uint8),
        None if bias is None else bias.contiguous(),
        None if extra_values is None else extra_values.contiguous(),
    )

"""How a kernel is told where a map lies."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

CHANNELS_UNIT, PIXELS_UNIT, ANY = 0, 1, 2  # as in vt_fast.kernels.tiles


class Placed(NamedTuple):
    """A map's strides in elements: of samples, rows of pixels, pixels in a row, and channels."""

    tensor: Tensor
    batch: int
    row: int
    column: int
    channel: int
    width: int
    layout: int

    @classmethod
    def of(cls, feature_map: Tensor) -> Placed:
        """A map (B, N, C) or (B, C, H, W) in any strides."""
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
            column = 1
        even = row == width * column
        layout = ANY
        if even and channel == 1:
            layout = CHANNELS_UNIT
        elif even and column == 1:
            layout = PIXELS_UNIT
        return cls(feature_map, batch, row, column, channel, width, layout)

    def strides_between(self) -> list[int]:
        """The strides that are not 1 by the layout."""
        if self.layout == CHANNELS_UNIT:
            return [self.batch, self.column]
        if self.layout == PIXELS_UNIT:
            return [self.batch, self.channel]
        return []

    def extent(self, pixels: int, channels: int) -> int:
        """One more than the largest offset in a sample."""
        rows, columns = -(-pixels // self.width) - 1, min(pixels, self.width) - 1
        return 1 + rows * self.row + columns * self.column + (channels - 1) * self.channel

    def arguments(self, align: int) -> tuple[Tensor, int, int, int, int]:
        """What a kernel takes: the tensor, and strides, in units of ``align`` unless the layout is ANY.

        Triton compiles anew for numbers that are 1 or multiples of 16. By the layout one stride is of use,
        besides that of samples; it is given 16-fold and the others as 0, so that all sizes share a kernel.
        """
        batch = self.batch // align  # multiplied again in every layout
        if self.layout == CHANNELS_UNIT:
            return self.tensor, batch, 0, 16 * (self.column // align), 0
        if self.layout == PIXELS_UNIT:
            return self.tensor, batch, 0, 0, 16 * (self.channel // align)
        return self.tensor, batch, self.row, self.column, self.channel


def alignment(*maps: Placed) -> int:
    """The largest power of two up to 16 that divides all strides which are not 1.

    Kernels multiply with it, so that a compiler knows how wide it may load: it finds out by itself only
    whether an argument is a multiple of 16.
    """
    for align in (16, 8, 4, 2):
        if all(stride % align == 0 for each in maps for stride in (each.strides_between() or [each.batch])):
            return align
    return 1

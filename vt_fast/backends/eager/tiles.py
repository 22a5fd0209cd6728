"""Walking over a map in tiles of a bounded size, and putting results together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from vt_fast.layout import as_pixels, bag_bounds, empty_map_like, merges
from vt_fast.precision import compute_dtype

# Elements of a tile. On a CPU 2 MB in float32, so that a tile stays in cache between its uses; on
# other devices large enough that launches do not count.
_TILE_ELEMENTS = {"cpu": 1 << 19}
_TILE_ELEMENTS_DEFAULT = 1 << 24


class Tiling:
    """How a map's pixels (B, N, C) are cut up, so that no array of a tile has more elements than fit.

    With offsets each bag is a group. They are read on the host, which waits for a device.

    Args:
        pixels: the map; (1, total, C) of bags.
        widths: how many numbers each pixel has in other arrays: result channels, logits.
        offsets: where bags begin and end.
    """

    def __init__(self, pixels: Tensor, *widths: int, offsets: Tensor | None = None) -> None:
        self.batch, self.count, channels = pixels.shape
        self.bounds = None if offsets is None else bag_bounds(offsets, self.count)
        if self.bounds is not None:
            self.batch = len(self.bounds) - 1
        elements = _TILE_ELEMENTS.get(pixels.device.type, _TILE_ELEMENTS_DEFAULT)
        self.pixels = max(1, elements // max(channels, *widths))

    def groups(self) -> Iterator[slice]:
        """Slices of the batch: samples that fit into one tile together, or one sample each.

        An empty batch is one group, so that its results and the gradients it shares get their shapes.
        """
        if self.bounds is not None:
            return _slices(self.batch, 1)
        return _slices(self.batch, max(1, self.pixels // self.count)) if self.batch else iter([slice(0, 0)])

    def tiles(self, samples: slice) -> Iterator[slice]:
        """Slices of the pixels of one group of samples."""
        if self.bounds is not None:
            bag = self._bag(samples)
            return _slices(bag.stop - bag.start, self.pixels)
        return _slices(self.count, max(1, self.pixels // max(1, samples.stop - samples.start)))

    def is_empty(self, samples: slice) -> bool:
        """Whether a group is a bag without pixels."""
        return self.bounds is not None and self.bounds[samples.start] == self.bounds[samples.stop]

    def part(self, operand: Tensor | None, samples: slice) -> Any:
        """What an optional operand (B, N, ..), or (1, total, ..), has for a group of samples."""
        if operand is None:
            return None
        return rows_of(operand, samples) if self.bounds is None else operand[:, self._bag(samples)]

    def _bag(self, samples: slice) -> slice:
        bounds = cast(list[int], self.bounds)
        return slice(bounds[samples.start], bounds[samples.stop])


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def read_tile(pixels: Tensor, tile: slice, valid: Tensor | None = None) -> Tensor:
    """(b, n, C) in the compute dtype, with 0 in place of the pixels that are not ``valid`` (b, N).

    A view where nothing needs to change.
    """
    values = pixels[:, tile].to(compute_dtype(pixels.dtype))
    return values if valid is None else keep_valid(values, valid, tile)


def read_optional(pixels: Tensor | None, tile: slice, like: Tensor) -> Tensor | None:
    """A tile of something that may not be there, in the compute dtype of a map."""
    return None if pixels is None else pixels[:, tile].to(compute_dtype(like.dtype))


def empty_tile(like: Tensor, channels: int | None = None) -> Tensor:
    """An uninitialised tile (b, n, channels or C) in the compute dtype."""
    shape = like.shape if channels is None else (*like.shape[:2], channels)
    return like.new_empty(shape, dtype=compute_dtype(like.dtype))


def keep_valid(values: Tensor, valid: Tensor, tile: slice) -> Tensor:
    """A copy of a tile's (b, n, ..) with 0 in place of the pixels that are not ``valid`` (b, N)."""
    return values.masked_fill(~valid[:, tile, None], 0)


def valid_pixels(mask: Tensor | None, pixel_bias: Tensor | None) -> Tensor | None:
    """(B, N) bool, or None for all: neither masked nor given a bias of -inf."""
    if pixel_bias is None:
        return mask
    finite = pixel_bias != -torch.inf
    return finite if mask is None else finite & mask


def batched(operand: Tensor, shared_dim: int) -> Tensor:
    """An operand with a batch dimension, of size 1 where all samples share it."""
    return operand[None] if operand.dim() == shared_dim else operand


def rows_of(operand: Tensor, samples: slice) -> Tensor:
    """What a :func:`batched` operand has for a group of samples; itself where that is all of it."""
    count = operand.shape[0]
    return operand if count == 1 or count == samples.stop - samples.start else operand[samples]


def joined(groups: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Two results of each group of samples, as those of the batch."""
    if len(groups) == 1:
        return groups[0]
    firsts, seconds = zip(*groups, strict=True)
    return torch.cat(firsts), torch.cat(seconds)


class PixelWriter:
    """A map like x that is written tile by tile, through a scratch map only where H and W do not merge."""

    def __init__(self, x: Tensor, channels: int, tiling: Tiling) -> None:
        self.map, self.tiling = empty_map_like(x, channels), tiling
        self.direct = merges(self.map)
        self.pixels = as_pixels(self.map if self.direct else self.map.new_empty(self.map.shape))
        self.in_place = self.map.dtype == compute_dtype(self.map.dtype)
        if tiling.batch == 0:
            self.pixels.zero_()  # of no bag

    def tile(self, samples: slice, tile: slice) -> Tensor:
        """Where to compute the pixels of a tile: in the map itself if its dtype allows. Holds anything."""
        target = self.tiling.part(self.pixels, samples)[:, tile]
        return target if self.in_place else empty_tile(target)

    def write(self, samples: slice, tile: slice, values: Tensor) -> None:
        """Store what was computed in :meth:`tile`, rounded to the map's dtype."""
        if not self.in_place:
            self.tiling.part(self.pixels, samples)[:, tile] = values

    def finish(self) -> Tensor:
        """The map."""
        if not self.direct:
            self.map.copy_(self.pixels.mT.unflatten(2, self.map.shape[2:]))
        return self.map


class OperandGradient:
    """The gradient of a small operand, put together from groups of samples in their order.

    An operand of ``shared_dim`` dimensions serves all samples: theirs are summed. Any other is per
    sample. Does nothing unless ``needed``. ``form``: the operand (b or 1, ..) in the form of the parts.
    """

    def __init__(
        self, operand: Tensor | None, shared_dim: int, needed: bool, form: Tensor | None = None
    ) -> None:
        self.needed = needed and operand is not None
        self.shared = operand is not None and operand.dim() == shared_dim
        self.form = form
        self.groups: list[Tensor] = []
        self.current: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """A tile's part (b, ..), summed over its pixels; not kept, and may be changed."""
        self.current = part if self.current is None else self.current.add_(part)

    def end_group(self) -> None:
        """The tiles that follow belong to the next group of samples. One without a tile is an empty bag."""
        if self.current is not None:
            self.groups.append(self.current.sum(0, keepdim=True) if self.shared else self.current)
            self.current = None
        elif self.needed and self.form is not None:
            self.groups.append(torch.zeros_like(self.form[:1]))

    def result(self) -> Tensor | None:
        """(..) for a shared operand, else (B, ..); None if not needed."""
        if not self.needed:
            return None
        if not self.groups and self.form is not None:  # no bag
            return torch.zeros_like(self.form[0] if self.shared else self.form)
        parts = torch.cat(self.groups)
        return parts.sum(0) if self.shared else parts

"""How a call is cut into programs: by its setting, its shapes and the number of multiprocessors alone."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vt_fast.backends.triton import device
from vt_fast.backends.triton.arithmetic import ceil_div
from vt_fast.backends.triton.settings import KEEP, WHOLE, Setting

# Programs that should be there for each multiprocessor, so that loads of one overlap products of another.
_PROGRAMS_EACH = 4
# What the parts of a call leave behind for the last step may be so much of the map, or these bytes, which
# no GPU's memory gets to see.
_SHARE, _LITTLE = 0.05, 1 << 20


class Cut(NamedTuple):
    """``blocks`` programs share the channels; each goes over its own chunks, ``loops`` times ``own`` of them.

    The pixels are cut into ``parts``, of a sample or of the whole batch, ``each`` pixels (or tiles) long.
    ``one_tile``: a part is no more than one.
    """

    own: int
    loops: int
    blocks: int
    keep: bool
    parts: int
    each: int
    one_tile: bool

    @property
    def direct(self) -> bool:
        """Whether a program writes a result, and nothing is left to be summed up."""
        return self.parts == 1 and (self.loops == 1 or self.one_tile)


def cut(setting: Setting, x: Tensor, pixels: int, channels: int, items: int, part_bytes: int) -> Cut:
    """Parts of each sample. ``items``: samples times heads; ``part_bytes``: what one part of all leaves."""
    processors = device.traits(x.device).processors
    chunks = ceil_div(channels, setting.chunk)
    tiles = ceil_div(pixels, setting.tile)
    most = max(1, min(_affordable(x, part_bytes), tiles))
    if setting.form == WHOLE:
        blocks = max(1, min(chunks, processors // (items * most)))
        loops = ceil_div(chunks, blocks)
        blocks = ceil_div(chunks, loops)
        wanted = ceil_div(processors * _PROGRAMS_EACH, items * blocks)
        each = ceil_div(tiles, min(wanted, most)) * setting.tile
        return Cut(1, loops, blocks, False, ceil_div(pixels, each), each, each == setting.tile)
    # Few programs cannot keep the device busy, each with all channels.
    keep = setting.form == KEEP and 2 * items * most >= processors
    own = chunks if setting.form == KEEP else min(setting.own or chunks, chunks)
    if items * most < processors:
        own = max(1, min(own, chunks * items * most // processors))
    blocks = 1 if keep else ceil_div(chunks, own)
    own = chunks if keep else ceil_div(chunks, blocks)
    wanted = ceil_div(processors * _PROGRAMS_EACH, items * blocks)
    each = ceil_div(ceil_div(pixels, min(wanted, most)), setting.tile) * setting.tile
    return Cut(own, 1, blocks, keep, ceil_div(pixels, each), each, each == setting.tile)


def cut_across(
    setting: Setting, x: Tensor, pixels: int, channels: int, num_heads: int, part_bytes: int
) -> Cut:
    """Parts of the whole batch, counted in tiles; ``part_bytes``: what one of them leaves.

    There are enough to keep the device busy, also where these leave more than is affordable: a part of each
    sample would leave yet more.
    """
    processors = device.traits(x.device).processors
    chunks = ceil_div(channels, setting.chunk)
    keep = setting.form == KEEP
    own = chunks if keep else min(setting.own or chunks, chunks)
    tiles = x.shape[0] * ceil_div(pixels, setting.tile)
    most = min(max(_affordable(x, part_bytes), ceil_div(processors, num_heads)), tiles)
    blocks = 1 if setting.form == WHOLE else ceil_div(chunks, own)
    wanted = ceil_div(processors * _PROGRAMS_EACH, num_heads * blocks)
    each = ceil_div(tiles, min(wanted, most))
    own, loops = (1, chunks) if setting.form == WHOLE else (ceil_div(chunks, blocks), 1)
    return Cut(own, loops, blocks, keep, ceil_div(tiles, each), each, each == 1)


def _affordable(x: Tensor, part_bytes: int) -> int:
    return int(max(_SHARE * x.numel() * x.element_size(), _LITTLE) // max(part_bytes, 1))

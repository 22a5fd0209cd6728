"""How a call is launched: on what device, cut into which programs, with which setting and constants."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from vt_fast.backends.contract import Call, CannotRunError, switches
from vt_fast.backends.triton import settings
from vt_fast.backends.triton.compiling import MiscompiledError
from vt_fast.backends.triton.maps import Placement
from vt_fast.backends.triton.primitives import Config
from vt_fast.backends.triton.settings import KEEP, WHOLE, Problem, Replaceable, Setting, ceil_div

__all__ = [
    "Cut", "Observer", "OutOfResources", "Traits", "attempt", "config", "cut", "cut_across", "launch",
    "observed", "standing_in", "traits",
]  # fmt: skip

T = TypeVar("T")

_LOG = logging.getLogger("vt_fast")


class Traits(NamedTuple):
    """What launches depend on: architecture ("sm_90", "gfx942"), number of multiprocessors, shared memory.

    On AMD's devices these are compute units and a workgroup's local memory.
    """

    architecture: str
    processors: int
    shared_bytes: int


# For the interpreter, and for meta tensors outside of `standing_in`.
_NOWHERE = Traits("none", 4, 1 << 30)
# Bytes of shared memory per program where the driver does not report them.
_LEAST_SHARED = 64 << 10

_meta = Replaceable(_NOWHERE)


def traits(device: torch.device) -> Traits:
    """The traits of a device."""
    if device.type == "cuda":
        return _of_gpu(device)
    return _meta.value if device.type == "meta" else _NOWHERE


def standing_in(for_device: Traits) -> AbstractContextManager[None]:
    """Within, meta tensors count as tensors on such a device."""
    _unfit.difference_update([each for each in _unfit if each[2].type == "meta"])  # of another device
    return _meta.by(for_device)


@functools.cache
def _of_gpu(device: torch.device) -> Traits:
    properties = torch.cuda.get_device_properties(device)
    return Traits(
        _architecture(properties),
        int(properties.multi_processor_count),
        int(getattr(properties, "shared_memory_per_block_optin", 0) or _LEAST_SHARED),
    )


def _architecture(properties: Any) -> str:
    """The architecture by which settings are found."""
    if torch.version.hip is not None:
        # Like "gfx942:sramecc+:xnack-".
        return str(properties.gcnArchName).partition(":")[0]
    major, minor = properties.major, properties.minor
    if major == 9:
        return "sm_90"
    if major == 10:
        return "sm_100"
    # Those with 100 KB of shared memory: 8.6, 8.9, 12.x.
    return "sm_80" if (major, minor) in ((8, 0), (8, 7)) else "sm_86"


# Programs to launch for each multiprocessor, so that loads of one overlap products of another.
_PROGRAMS_EACH = 4
# The parts of a call may take this share of the map's bytes, or these bytes, which fit in any L2 cache.
_SHARE, _LITTLE = 0.05, 1 << 20


class Cut(NamedTuple):
    """How the work is cut into programs: by setting, shapes and the number of multiprocessors alone.

    ``blocks`` programs share the channels; each goes over its own chunks, ``loops`` times ``own`` of them.
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
    processors = traits(x.device).processors
    items = max(items, 1)  # an empty batch launches nothing, but its gradients still have a shape
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
    # Too few programs leave multiprocessors idle; then several share the channels.
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
    setting: Setting, x: Tensor, tiles: int, channels: int, num_heads: int, part_bytes: int
) -> Cut:
    """Parts of the whole batch, which has so many tiles; ``part_bytes``: what one part leaves.

    There are enough to keep the device busy even where they take more memory than is affordable: a part of
    each sample would take still more.
    """
    processors = traits(x.device).processors
    chunks = ceil_div(channels, setting.chunk)
    keep = setting.form == KEEP
    own = chunks if keep else min(setting.own or chunks, chunks)
    tiles = max(tiles, 1)
    most = min(max(_affordable(x, part_bytes), ceil_div(processors, num_heads)), tiles)
    blocks = 1 if setting.form == WHOLE else ceil_div(chunks, own)
    wanted = ceil_div(processors * _PROGRAMS_EACH, num_heads * blocks)
    each = ceil_div(tiles, min(wanted, most))
    own, loops = (1, chunks) if setting.form == WHOLE else (ceil_div(chunks, blocks), 1)
    return Cut(own, loops, blocks, keep, ceil_div(tiles, each), each, each == 1)


def _affordable(x: Tensor, part_bytes: int) -> int:
    return int(max(_SHARE * x.numel() * x.element_size(), _LITTLE) // max(part_bytes, 1))


def config(
    setting: Setting,
    made: Cut,
    placed: Placement,
    dtype: torch.dtype,
    *,
    channels: int,
    out_channels: int = 0,
    together: bool = True,
    **others: Any,
) -> Config:
    """A kernel's constants; ``others`` are fields that only some kernels read.

    ``together``: each walk goes through the channels of x and of the other maps, not the first one through
    those of x and the second one through the others'.
    """
    chunk, most = setting.chunk, max(channels, out_channels if together else 0)
    reach = chunk * made.own * made.loops
    ragged = channels % chunk != 0 or channels < most
    out_ragged = out_channels % chunk != 0 or (together and out_channels < most)
    return Config(
        TILE=setting.tile,
        CHUNK=chunk,
        OWN=made.own,
        LOOPS=made.loops,
        BLOCKS=made.blocks,
        KEEP=made.keep,
        ONE_TILE=made.one_tile,
        CHUNKS=ceil_div(most, chunk),
        RAGGED=ragged,
        OUT_RAGGED=out_ragged,
        OWN_RAGGED=ragged or channels % reach != 0,
        OUT_OWN_RAGGED=out_ragged or out_channels % reach != 0,
        ALIGN=placed.align,
        PIXEL_ALIGN=placed.pixel_align,
        INT64=placed.wide,
        PRECISION=settings.precision(dtype),
        SMALL_PRECISION=settings.small_precision(dtype),
        LOGIT_PRECISION=settings.logit_precision(dtype, traits(placed.maps[0].data.device).architecture),
        WIDEN=settings.widens(dtype),
        ACC=tl.float64 if dtype == torch.float64 else tl.float32,
        LIMIT=settings.limit(dtype),
        CHANNELS=channels,
        OUT_CHANNELS=out_channels,
        **others,
    )


def part_dtype(operand: Tensor, single: bool, sums: torch.dtype) -> torch.dtype:
    """The dtype of a gradient's parts: the gradient's own where a ``single`` part is all of it."""
    return operand.dtype if single else sums


def summed(parts: Tensor, operand: Tensor, *, shared: bool) -> Tensor:
    """Parts (B, parts, ...) summed up, over the batch too where it shares the operand."""
    if shared:
        whole = parts.flatten(0, 1)
        whole = whole[0] if whole.shape[0] == 1 else whole.sum(0)
    else:
        whole = parts[:, 0] if parts.shape[1] == 1 else parts.sum(1)
    return whole.reshape(operand.shape)


# (kernel, grid, positional arguments, constants and options)
Observer: TypeAlias = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]

_observer: Replaceable[Observer | None] = Replaceable(None)

# Errors that no other kernel would be spared. An earlier launch may have caused the second one.
_OF_THE_DEVICE = (torch.OutOfMemoryError, torch.AcceleratorError)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the current stream; all launches go through here. An empty grid launches nothing.

    Raises:
        OutOfResources: the device has too little shared memory for it; nothing was launched.
        MiscompiledError: it cannot be compiled rightly; nothing was launched.
        CannotRunError: it cannot be compiled or launched.
    """
    if 0 in grid:
        return
    if _observer.value is not None:
        _observer.value(kernel, grid, arguments, constants)
        return
    try:
        kernel[grid](*arguments, **constants)
    except (OutOfResources, MiscompiledError, *_OF_THE_DEVICE):
        raise
    except Exception as error:  # compilers, drivers and files raise errors of all kinds
        name = kernel.fn.__name__
        raise CannotRunError(f"{name} cannot be compiled or launched: {error}") from error


def observed(observer: Observer) -> AbstractContextManager[None]:
    """Within, launches go to the observer instead, so that operands may be meta tensors."""
    return _observer.by(observer)


# Settings that did not fit on a device although their estimate did, or that cannot be compiled rightly, and
# the calls of which that was found.
_unfit: set[tuple[Problem, Setting, torch.device, tuple[Any, ...]]] = set()


def attempt(problem: Problem, call: Call, run: Callable[[Setting], T]) -> T:
    """Run a call with the best setting that fits on the device.

    Raises:
        CannotRunError: not even the smallest one does.
    """
    x = call.x
    device = traits(x.device)
    limit = device.shared_bytes
    reasons = []
    for setting in settings.choices(problem, device.architecture):
        needed = settings.shared_bytes(problem, setting)
        if needed > limit:
            reasons.append(f"{setting}: {needed} bytes of shared memory of {limit}")
            continue
        if _unfit and (problem, setting, x.device, _variant(call)) in _unfit:
            continue
        try:
            with torch.cuda.device_of(x):
                return run(setting)
        except (OutOfResources, MiscompiledError) as error:
            _unfit.add((problem, setting, x.device, _variant(call)))
            reasons.append(f"{setting}: {error}")
            _LOG.warning("a launch setting of %s is unfit for %s: %s", problem, x.device, reasons[-1])
    raise CannotRunError(f"no launch setting of {problem} fits on {x.device}: " + "; ".join(reasons))


def _variant(call: Call) -> tuple[Any, ...]:
    """What a call's kernel and its constants depend on besides the problem: which operands and options."""
    return (type(call), *switches(call), *map(_operand_variant, call))


def _operand_variant(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.dim()
    if isinstance(value, float):
        return True  # a number that kernels are given as they run
    return tuple(value) if isinstance(value, list) else value

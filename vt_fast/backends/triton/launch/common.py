"""What launching the kernels of all ops has in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vt_fast.backends.triton import device, library, settings
from vt_fast.backends.triton.arithmetic import ceil_div, power_of_two
from vt_fast.backends.triton.launcher import OutOfResources, launch
from vt_fast.backends.triton.maps import ANY, CHANNELS_UNIT, PIXELS_UNIT, Placed
from vt_fast.backends.triton.plan import Cut
from vt_fast.backends.triton.settings import Problem, Setting
from vt_fast.kernels.deltas import deltas as deltas_kernel

T = TypeVar("T")

_LOG = logging.getLogger("vt_fast")
_INT32 = 2**31 - 1
# Settings that did not fit on a device though they should have.
_too_large: set[tuple[Problem, Setting, torch.device]] = set()


def attempt(problem: Problem, x: Tensor, run: Callable[[Setting], T]) -> T:
    """Run with the best setting that fits on the device.

    Raises:
        RuntimeError: not even the smallest one does.
    """
    limit = device.traits(x.device).shared_bytes
    reasons = []
    for setting in settings.choices(problem, x.device):
        needed = settings.shared_bytes(problem, setting)
        if needed > limit:
            reasons.append(f"{setting}: {needed} bytes of shared memory of {limit}")
            continue
        if _too_large and (problem, setting, x.device) in _too_large:
            continue
        try:
            with torch.cuda.device_of(x):
                return run(setting)
        except OutOfResources as error:
            _too_large.add((problem, setting, x.device))
            reasons.append(f"{setting}: {error}")
            _LOG.warning("a launch setting of %s does not fit on %s: %s", problem, x.device, reasons[-1])
    raise RuntimeError(f"no launch setting of {problem} fits on {x.device}: " + "; ".join(reasons))


def layout_name(*maps: Placed) -> str:
    """Which class of settings is for these maps."""
    found = {place.layout for place in maps}
    return settings.LAYOUTS[found.pop()] if len(found) == 1 else "any"


def wide(pixels: int, channels: int, *maps: Placed) -> bool:
    """Whether an offset within a sample may exceed 32 bits."""
    return max(place.extent(pixels, channels) for place in maps) > _INT32


def shape_arguments(pixels: int, align: int, *maps: Placed) -> tuple[int, int]:
    """Pixels, and pixels in a row if that is of use for one of the maps, of which x is the first."""
    uneven = any(place.layout == ANY for place in maps)
    return pixels // pixel_align(maps[0], pixels, align), maps[0].width if uneven else 0


def pixel_align(place: Placed, pixels: int, align: int) -> int:
    """What a kernel multiplies the number of pixels with, so that it knows how wide masks may be."""
    if place.layout == CHANNELS_UNIT:
        return 1
    # ``align`` is of the strides; where these are of any kind, that of the pixels has nothing to do with it.
    align = align if place.layout == PIXELS_UNIT else 16
    while pixels % align:
        align //= 2
    return align


def options(setting: Setting, dtype: torch.dtype) -> dict[str, Any]:
    """What every kernel is told of its setting and of its dtype."""
    return {
        "TILE": setting.tile,
        "CHUNK": setting.chunk,
        "PRECISION": library.precision(dtype),
        "WIDEN": library.widens(dtype),
        "num_warps": setting.warps,
        "num_stages": setting.stages,
    }


def cut_options(cut: Cut) -> dict[str, Any]:
    """What kernels that sum over pixels are told besides."""
    return {
        "OWN": cut.own,
        "LOOPS": cut.loops,
        "BLOCKS": cut.blocks,
        "KEEP": cut.keep,
        "ONE_TILE": cut.one_tile,
    }


def row_shape(num_heads: int, tokens: int) -> dict[str, int]:
    """Heads and tokens, and what they are padded to."""
    return {
        "HEADS": num_heads,
        "HEADS_PADDED": power_of_two(num_heads),
        "TOKENS": tokens,
        "TOKENS_PADDED": power_of_two(tokens, 16),
    }


def acc(dtype: torch.dtype) -> Any:
    """The dtype of sums, as Triton names it."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def deltas(
    grad_tokens: Tensor, tokens: Tensor, grad_lse: Tensor | None, lse: Tensor, num_heads: int
) -> Tensor:
    """delta (B, num_heads * L): what the mean of A * dA over the pixels is, less the gradient of lse."""
    delta = torch.empty_like(lse, memory_format=torch.contiguous_format)
    batch, count, width = tokens.shape
    rows = batch * num_heads * count
    launch(
        deltas_kernel,
        (ceil_div(rows, 4),),
        grad_tokens,
        tokens.contiguous(),
        lse if grad_lse is None else grad_lse.contiguous(),
        delta,
        rows,
        HEADS=num_heads,
        TOKENS=count,
        CHANNELS=width // num_heads,
        HAS_GRAD_LSE=grad_lse is not None,
        ROWS=4,
        BLOCK=min(256, power_of_two(width // num_heads, 16)),
    )
    return delta


def summed(parts: Tensor, operand: Tensor, *, shared: bool) -> Tensor:
    """Parts (B, parts, ...) summed up, over the batch too where it shares the operand."""
    if shared:
        whole = parts.flatten(0, 1)
        whole = whole[0] if whole.shape[0] == 1 else whole.sum(0)
    else:
        whole = parts[:, 0] if parts.shape[1] == 1 else parts.sum(1)
    return whole.reshape(operand.shape)


def part_dtype(cut: Cut, operand: Tensor, *, shared: bool, sums: torch.dtype) -> torch.dtype:
    """The dtype of parts: that of the gradient where there is nothing to be summed up."""
    return operand.dtype if cut.direct and not shared else sums


def extra_values_gradient(attention: Tensor, grad_entries: Tensor) -> Tensor:
    """(N, P) from weights (B, N, L) and the gradients (B, L, P) of the tokens' columns."""
    return torch.einsum("bnl,blp->np", attention, grad_entries)

"""Backend ``"cuda"``: C++ kernels from csrc/cuda for NVIDIA GPUs, compiled when the package is built.

One pass over the map forward and one backward. Sums and statistics are in float32; partial results are added
in a fixed order, so that a call gives the same bits each time. The ops themselves are in
csrc/torch/cuda_ops.cpp.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from vt_fast.backends.contract import Call, Tokenize, TokenizeBackward, not_taken
from vt_fast.backends.cuda import library
from vt_fast.layout import channel_count, pixel_count

__all__ = ["refuses", "unavailable"]

# Of the op family, besides biases of rows where weights need no sum over pixels.
_SWITCHES = (
    '`normalize="tokens"`',
    '`normalize="exp"`',
    "`normalize=None`",
    "several heads of full width",
    "keys for channel blocks",
    "values that are summed over the heads",
)
_MOST_ROWS, _MOST_CHANNELS, _MOST_EXTRA_COLUMNS = 64, 2048, 64


def unavailable() -> str | None:
    """Why it cannot run on this machine, or None if it can."""
    reason = library.load()
    if reason is None and (torch.version.cuda is None or not torch.cuda.is_available()):
        return "torch finds no NVIDIA GPU"
    return reason


def refuses(call: Call) -> str | None:
    """What csrc/torch/cuda_calls.h refuses, for the same reasons."""
    x = call.x
    if x.device.type not in ("cuda", "meta"):
        return f"the tensors are on {x.device}; this backend is for NVIDIA GPUs"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, bfloat16 and float16, not in {x.dtype}"
    biases = ["`token_bias`"] if getattr(call, "normalize", "pixels") != "pixels" else []
    reason = not_taken(call, *_SWITCHES, *biases)
    if reason is not None:
        return reason
    if x.dtype == torch.float16 and getattr(call, "normalize", None) == "exp":
        return 'it does not take `normalize="exp"` in float16, which its weights leave'
    channels = channel_count(x)
    tokenize = isinstance(call, Tokenize | TokenizeBackward)
    keys: Any = getattr(call, "keys", None)
    values: Any = getattr(call, "values", None)
    out_channels = channels if values is None else values.shape[-1]
    if channels > _MOST_CHANNELS or out_channels > _MOST_CHANNELS:
        return f"it takes at most {_MOST_CHANNELS} channels"
    queries = getattr(call, "queries", None)
    if tokenize:
        blocks = call.num_heads if queries is not None and queries.shape[-1] != channels else 1
    else:
        blocks = keys.shape[-2] // values.shape[-2]
    if queries is not None and queries.shape[-2] // (blocks if tokenize else 1) > _MOST_ROWS:
        return f"it takes at most {_MOST_ROWS} queries for each head"
    if keys is not None and keys.shape[-2] > _MOST_ROWS:
        return f"it takes at most {_MOST_ROWS} num_heads * tokens"
    extra = getattr(call, "extra_values", None)
    if extra is not None and extra.shape[-1] > _MOST_EXTRA_COLUMNS:
        return f"it takes at most {_MOST_EXTRA_COLUMNS} columns of extra_values"
    each = 16 // x.element_size()
    width = channels if keys is None else keys.shape[-1]
    if width % each != 0 or (out_channels // blocks) % each != 0:
        return f"the channels of a head must be a multiple of {each}"
    heads = blocks if tokenize else call.num_heads
    if pixel_count(x) > 2**31 - 65 or x.shape[0] * heads > 2**30 - 1:
        return "it takes fewer than 2^31 - 64 pixels, and fewer than 2^30 for samples times num_heads"
    # A compiler asks for a call that may run elsewhere; there the driver refuses another architecture.
    if x.device.type == "meta" or torch.compiler.is_compiling():
        return None
    return _wrong_device(x.device.index)


@functools.cache
def _wrong_device(index: int) -> str | None:
    """Why the kernels cannot run on a GPU that torch has initialised."""
    major, minor = torch.cuda.get_device_capability(index)
    return library.missing_architecture(major, minor)

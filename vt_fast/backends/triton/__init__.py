"""Backend ``"triton"``: kernels for NVIDIA and AMD GPUs.

One pass over the map forward and one backward. Sums and statistics are in float32 (float64 for float64);
partial results are put together in a fixed order, so that a call gives the same bits each time.

An op's kernels and their launch are in one file, ``*_op``. What they share: ``primitives``,
``pixel_softmax`` and ``token_softmax`` (kernels), ``maps`` (operands), ``schedule`` (launches) and
``settings``. Triton is imported with the first call.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch

from vt_fast.backends.contract import (
    Call,
    ProjectTokenize,
    ProjectTokenizeBackward,
    Tokenize,
    TokenizeBackward,
    row_count,
    sees_block,
)
from vt_fast.layout import channel_count
from vt_fast.precision import FLOATING

# Triton looks at this when kernels are defined: on the CPU they are then run by an interpreter.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

# More rows of scores for a pixel than this do not fit in a program's registers.
_MOST_ROWS = 256


def unavailable() -> str | None:
    """Why it cannot run on this machine, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if not INTERPRETED and not torch.cuda.is_available():
        return (
            "torch finds no CUDA or ROCm device (TRITON_INTERPRET=1 in the environment runs the kernels on "
            "CPU tensors, slowly, to check them)"
        )
    return None


def refuses(call: Call) -> str | None:
    """Another device, another dtype, or more tokens than a program can hold."""
    x = call.x
    if x.device.type not in (("cpu", "meta") if INTERPRETED else ("cuda", "meta")):
        return f"the tensors are on {x.device}; this backend is for CUDA and ROCm devices" + (
            ", and under TRITON_INTERPRET=1 for the CPU alone" if INTERPRETED else ""
        )
    if x.dtype not in FLOATING:
        return f"it computes in float16, bfloat16, float32 and float64, not in {x.dtype}"
    if x.element_size() == 8 and not INTERPRETED:
        return "it computes in float64 under TRITON_INTERPRET=1 alone"
    # Rows are padded to powers of two, at least 16. Said in comparisons, which a compiler can keep symbolic.
    if isinstance(call, Tokenize | TokenizeBackward):
        return _too_many_rows(call)
    most = _MOST_ROWS >> (call.num_heads - 1).bit_length()
    scores, offsets = getattr(call, "scores", None), getattr(call, "offsets", None)
    if most < 16 or row_count(call.keys, scores, offsets) // call.num_heads > most:
        return (
            f"it takes at most {_MOST_ROWS} num_heads * tokens, both rounded up to powers of two and "
            "the tokens to at least 16"
        )
    if isinstance(call, ProjectTokenize | ProjectTokenizeBackward) and call.queries.shape[-2] > _MOST_ROWS:
        return f"it takes at most {_MOST_ROWS} queries"
    return None


def _too_many_rows(call: Tokenize | TokenizeBackward) -> str | None:
    """Why a program cannot hold its rows: a head's, or all of them where heads do not see blocks."""
    rows, num_heads, most = row_count(call.queries, call.scores, call.offsets), call.num_heads, _MOST_ROWS
    blocks = sees_block(call.queries, channel_count(call.x), num_heads)
    if call.layer_norm_eps is None and blocks:
        rows //= num_heads
    elif call.normalize == "tokens":
        if rows // num_heads > most >> (num_heads - 1).bit_length():
            return (
                f'with `normalize="tokens"` it takes at most {most} num_heads * queries, both rounded up to '
                "powers of two, where heads see all channels"
            )
        return None
    if rows > most:
        return (
            f"it takes at most {most} rows of queries, for each head where heads see channel blocks and "
            "`layer_norm_eps` is None"
        )
    return None


# Where each function of the backend is.
_FUNCTIONS = {
    "tokenize": ("tokenize_op", "forward"),
    "tokenize_backward": ("tokenize_backward_op", "backward"),
    "project": ("project_op", "forward"),
    "project_backward": ("project_op", "backward"),
    "project_tokenize": ("project_tokenize_op", "forward"),
    "project_tokenize_backward": ("project_tokenize_backward_op", "backward"),
}
__all__ = [*_FUNCTIONS, "refuses", "unavailable"]


def __getattr__(name: str) -> Any:
    # Triton is imported with the first call, and a function is asked for once.
    if name in _FUNCTIONS:
        module, function = _FUNCTIONS[name]
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

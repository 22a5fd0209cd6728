"""Backend ``"triton"``: kernels for NVIDIA and AMD GPUs, from vt_fast.kernels.

One pass over the map forward and one backward. Sums and statistics are in float32 (float64 for float64);
partial results are put together in a fixed order, so that a call gives the same bits each time.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vt_fast.backends.contract import (
    Call,
    Project,
    ProjectTokenize,
    Tokenize,
)
from vt_fast.backends.triton.library import INTERPRETED, unavailable
from vt_fast.precision import FLOATING

__all__ = [
    "project",
    "project_backward",
    "project_tokenize",
    "project_tokenize_backward",
    "refuses",
    "tokenize",
    "tokenize_backward",
    "unavailable",
]

# More rows of scores for a pixel than this do not fit in a program's registers.
_MOST_ROWS = 256


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
    if isinstance(call, Tokenize) and call.queries.shape[-2] // call.num_heads > _MOST_ROWS:
        return f"it takes at most {_MOST_ROWS} queries for each head"
    if isinstance(call, Project | ProjectTokenize):
        most = _MOST_ROWS >> (call.num_heads - 1).bit_length()
        if most < 16 or call.values.shape[-2] > most:
            return (
                f"it takes at most {_MOST_ROWS} num_heads * tokens, both rounded up to powers of two and "
                "the tokens to at least 16"
            )
    if isinstance(call, ProjectTokenize) and call.queries.shape[-2] > _MOST_ROWS:
        return f"it takes at most {_MOST_ROWS} queries"
    return None


def __getattr__(name: str) -> Any:
    # Triton is imported with the first call, and a function is asked for once.
    if name in __all__:
        value = globals()[name] = getattr(import_module("vt_fast.backends.triton.calls"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

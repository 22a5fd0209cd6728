"""Backend ``"cpu"``: C++ kernels from csrc/, compiled for several instruction sets and chosen at run time.

One pass over the map forward and one backward, with torch's threads and memory. Sums and statistics are in
float32 (float64 for float64). Results do not depend on the number of threads. The ops themselves are in
csrc/torch/cpu_ops.cpp.
"""

from vt_fast.backends.contract import Call
from vt_fast.backends.cpu.library import unavailable
from vt_fast.precision import FLOATING

__all__ = ["refuses", "unavailable"]


def refuses(call: Call) -> str | None:
    """Another device or dtype. Any switch, any shape and any strides are supported."""
    x = call.x
    # Nothing is computed for meta tensors, so any backend supports them.
    if x.device.type not in ("cpu", "meta"):
        return f"the tensors are on {x.device}; this backend is for the CPU"
    if x.dtype not in FLOATING:
        return f"it computes in float16, bfloat16, float32 and float64, not in {x.dtype}"
    return None

"""What Triton compiles a kernel anew for."""

from vt_fast.backends.triton.ahead import Operand
from vt_fast.kernels.tiles import SIZES


def variant(request):
    """Equal where launches share what was compiled: dtypes, constants, which numbers are 1 or 16 n."""
    seen = []
    for name, value in zip(request.kernel.arg_names, request.arguments, strict=False):
        if isinstance(value, Operand):
            seen.append(value.dtype)
        else:
            seen.append(value >= 2**31 if name in SIZES else (value == 1, value % 16 == 0, value >= 2**31))
    return request.name, tuple(seen), str(request.constants)

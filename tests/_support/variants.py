"""What Triton compiles a kernel anew for."""

from vt_fast.backends.triton.ahead import Operand
from vt_fast.backends.triton.primitives import UNSPECIALIZED


def variant(request):
    """Equal where launches share what was compiled: dtypes, constants, which numbers are 1 or 16 n."""
    named = zip(request.kernel.arg_names, request.arguments, strict=False)
    seen = tuple(seen_of(value, name in UNSPECIALIZED) for name, value in named)
    return request.name, seen, str(request.constants)


def seen_of(value, unspecialized):
    """What the compiled code depends on of an argument. Within a tuple, every number counts."""
    if isinstance(value, tuple):
        return tuple(seen_of(each, False) for each in value)
    if isinstance(value, Operand):
        return value.dtype
    if isinstance(value, int):
        return value >= 2**31 if unspecialized else (value == 1, value % 16 == 0, value >= 2**31)
    return str(value)  # None, or a constant

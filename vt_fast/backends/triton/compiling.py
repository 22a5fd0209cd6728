"""Refuses kernels that the assembler is known to get wrong."""

from __future__ import annotations

import re
import threading
from typing import Any, TypeVar

from vt_fast.backends.triton import INTERPRETED

Kernel = TypeVar("Kernel")

# Numbers added to an address to make the descriptors of wgmma's operands in shared memory. The first one of
# an operand is made by "or", and is always right.
_DESCRIPTOR = re.compile(r"add\.s64\s+%rd\d+, (%rd\d+), (-?\d+);")
_VERSION = re.compile(r"^\.version (\d+)\.(\d+)$", re.MULTILINE)


# While a kernel is compiled its method is another, also for the other threads.
_COMPILING = threading.RLock()


class MiscompiledError(RuntimeError):
    """The machine code of a kernel would compute wrong addresses."""


def fault(ptx: str) -> str | None:
    """Why ptxas does not compile this code rightly, or None.

    ptxas 12.8, which Triton 3.6 brings, loses an address in shared memory that goes into descriptors of two
    layouts, as where one operand of wgmma takes the place of another. Those of one layout are then made of an
    uninitialized register, and the product reads anything, or faults. Some code of that kind is right all the
    same. ptxas 12.9 is right.
    """
    version = _VERSION.search(ptx)
    if version is None or tuple(map(int, version.groups())) > (8, 7) or "wgmma.mma_async" not in ptx:
        return None
    layouts: dict[str, int] = {}
    for address, number in _DESCRIPTOR.findall(ptx):
        layout = int(number) >> 32
        # Descriptors have bits beyond the lower 32; other sums do not.
        if layout not in (0, -1) and layouts.setdefault(address, layout) != layout:
            return "ptxas 12.8 loses the address of an operand in shared memory that takes another's place"
    return None


def checked(kernel: Kernel) -> Kernel:
    """The kernel, which raises MiscompiledError rather than launch code with a :func:`fault`."""
    if INTERPRETED:
        return kernel
    wrapped: Any = kernel
    do_compile = wrapped._do_compile

    def compile_checked(*arguments: Any, **options: Any) -> Any:
        def compile_and_check(*source: Any, **others: Any) -> Any:
            compiled = compile_source(*source, **others)
            reason = fault(compiled.asm.get("ptx", ""))
            if reason is not None:
                raise MiscompiledError(reason)
            return compiled

        # Triton keeps what this returns, so that a faulty kernel must not get that far.
        with _COMPILING:
            compile_source = wrapped.compile
            wrapped.compile = compile_and_check
            try:
                return do_compile(*arguments, **options)
            finally:
                wrapped.compile = compile_source

    wrapped._do_compile = compile_checked
    return kernel

"""What a contender would need, by a call on tensors without data: lest a machine be driven into its swap.

The call is made with PyTorch's fake tensors, forward and backward, and the storages that live at the same
time are summed up: to the byte what the allocator sees of plain PyTorch. What a kernel takes for itself while
it runs is not seen, ours not either, so the figure is "about". Of a compiled peer it is that of its code
before it was compiled.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import operands, stack
from benchmarks.cases import FORWARD, STACK, Case
from benchmarks.contenders import Contender
from benchmarks.operands import TORCH_DTYPES
from benchmarks.truth import RESULTS, kept_elements

# Of the memory that is free, what the benchmark may take unless it is told otherwise.
SHARE = 0.8


def available() -> int | None:
    """Bytes that this machine could give without swapping anything out; None where it does not say."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    found = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(found["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in found else None


def limit() -> int | None:
    """Bytes that a run on this machine's CPU may take by default."""
    free = available()
    return None if free is None else int(SHARE * free)


class _Storages(TorchDispatchMode):
    """Bytes of the storages that live, and the most there have been, but for those known from the start."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        """Let the call be made, and look at what it returns."""
        results = func(*args, **(kwargs or {}))
        for value in tree_leaves(results):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        self.peak = max(self.peak, self.held)
        return results

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.held += size
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.held -= size


def numbers_bytes(case: Case) -> int:
    """What a case's own numbers take: operands, gradients that arrive, maps in its layout, and the truth."""
    given, results = _sizes(case)
    size = TORCH_DTYPES[case.dtype].itemsize
    x = _count(given["x"])
    total = size * (sum(map(_count, given.values())) + sum(map(_count, results)))
    copies = sum(name == "map" for name in RESULTS[case.op]) + 1 if case.layout == "nchw" else 0
    maps = 1 + ("map" in RESULTS[case.op])  # dx, and the map itself
    return total + size * copies * x + 8 * maps * kept_elements(x)


def call_bytes(case: Case, contender: Contender, which: str, device: torch.device | str = "cpu") -> int:
    """The most that a call holds at once, its results included and its operands not.

    Example:
        >>> from benchmarks.cases import Shape
        >>> from benchmarks.peers import tokenize
        >>> case = Case("tokenize", Shape(1, 10, 10, 8, 2), "fp32", "channels_last")
        >>> call_bytes(case, Contender("eager", "peer", tokenize, ("x", "queries")), "forward")
        1600
    """
    given, results = _sizes(case)
    dtype = TORCH_DTYPES[case.dtype]
    with FakeTensorMode(allow_non_fake_inputs=True):

        def empty(size: tuple[int, ...], is_map: bool) -> Tensor:
            value = torch.empty(size, dtype=dtype, device=device)
            return operands.lay_out(value, case.shape, case.layout) if is_map else value

        inputs = [empty(given[name], name == "x") for name in contender.operands]
        arriving = [empty(size, name == "map") for name, size in zip(RESULTS[case.op], results, strict=True)]
        inputs = [value.detach().requires_grad_(which != FORWARD) for value in inputs]
        function = contender.plain or contender.function
        with _Storages([*inputs, *arriving]) as storages, torch.set_grad_enabled(which != FORWARD):
            found: Any = function(*inputs)
            if which != FORWARD:
                found = (*found, *torch.autograd.grad(found, inputs, arriving))
        del found
    peak: int = storages.peak
    return peak


def needs(case: Case, contender: Contender, which: str, device: torch.device | str = "cpu") -> int | None:
    """What a process would hold, all in all, that measures a contender; None where that cannot be told.

    It cannot of a kernel that takes no tensors without data.
    """
    try:
        return numbers_bytes(case) + call_bytes(case, contender, which, device)
    except Exception:  # whatever a package raises that has never seen such a tensor
        return None


def complaint(bytes_: int | None, most: int | None) -> str | None:
    """Why something is not run, if it would need too much.

    Example:
        >>> complaint(31 << 30, 16 << 30)
        'needs about 33.3 GB, and may have 17.2 GB'
    """
    if bytes_ is None or most is None or bytes_ <= most:
        return None
    return f"needs about {bytes_ / 1e9:.3g} GB, and may have {most / 1e9:.3g} GB"


def _sizes(case: Case) -> tuple[dict[str, tuple[int, ...]], Sequence[tuple[int, ...]]]:
    if case.op == STACK:
        return stack.sizes(case.shape, case.depth)
    return operands.sizes(case.op, case.shape)


def _count(size: tuple[int, ...]) -> int:
    return int(torch.Size(size).numel())

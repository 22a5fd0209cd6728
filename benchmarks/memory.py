"""What a call would need, by a call on tensors without data, so that no contender drives a machine into swap.

The call is made with PyTorch's fake tensors, forward and backward, and the storages that live at the same
time are summed up: to the byte what the allocator sees of plain PyTorch. Workspace inside a kernel is not
seen, so the number is "about". FLOPs are counted in the same call, by the formulas of the ops.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# Of the memory that is free, what a run may take unless it is told otherwise.
SHARE = 0.8


def limit() -> int | None:
    """Bytes that a run on this machine's CPU may take without swapping; None where it does not say."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    free = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return int(SHARE * 1024 * free[0]) if free else None


class Prediction(NamedTuple):
    """FLOPs of a call, and the most bytes that it holds at once, its results included, its inputs not."""

    flops: int
    peak_bytes: int


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
            storage = value.untyped_storage() if isinstance(value, Tensor) else None
            if storage is not None and storage._cdata not in self._alive:
                self._alive.add(storage._cdata)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return results

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.held -= size


def predict(
    function: Callable[..., tuple[Tensor, ...]],
    make: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]],
    *,
    backward: bool,
) -> Prediction | None:
    """Of ``function(*inputs)``, and of the gradients of all inputs; None where it takes no fake tensors.

    ``make`` returns inputs, and the gradients that arrive at the results.

    Example:
        >>> make = lambda: ([torch.ones(4, 8), torch.ones(8, 2)], [])
        >>> predict(lambda a, b: (a @ b,), make, backward=False)
        Prediction(flops=128, peak_bytes=32)
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            inputs, arriving = make()
            inputs = [value.detach().requires_grad_(backward) for value in inputs]
            counter = FlopCounterMode(display=False)
            with _Storages([*inputs, *arriving]) as storages, counter, torch.set_grad_enabled(backward):
                found = function(*inputs)
                if backward:
                    found = (*found, *torch.autograd.grad(found, inputs, arriving))
            del found
        return Prediction(int(counter.get_total_flops()), storages.peak)
    except Exception:  # whatever a package raises that has never seen such a tensor
        return None

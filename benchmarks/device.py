"""What measuring asks of the device that it measures on, and the CPU's answers."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from benchmarks.peers import Code, Peer
from benchmarks.timing import Budget, interleaved, wall_clock

Call: TypeAlias = Callable[[], tuple[Tensor, ...]]
# Name of a call and what it computed when it was repeated: a complaint, or None.
Check: TypeAlias = Callable[[str, Sequence[Tensor]], str | None]


class Sizes(NamedTuple):
    """What the ceilings are measured with: bytes to copy, and sides of square matrices."""

    copy_bytes: int
    matrix_sides: tuple[int, ...]


class Times(NamedTuple):
    """All times of a call in seconds, and for a GPU: those of plain calls, what ``seconds`` are of, and why.

    ``wrong``: a complaint about what the timed code computed; then there are no times.
    """

    seconds: list[float]
    eager_seconds: Sequence[float] = ()
    timed_as: str | None = None
    note: str | None = None
    wrong: str | None = None


class Device:
    """A device and the rules of timing on it. This one is the CPU, on so many threads.

    ``large_map``: bytes of a map from which on it matters what memory an earlier case has left behind.
    ``peers``: peers by op that take part on this device alone. ``settles``: the first call of a function
    takes memory for good, which must not be counted as its own.
    """

    sizes = Sizes(1 << 27, (512, 768, 1024))
    quick_sizes = Sizes(1 << 22, (64, 128))
    large_map = 1 << 26
    settles = False
    reads = False
    peers: Mapping[str, Sequence[Peer]] = {}

    def __init__(self, threads: int | None = 1) -> None:
        self.torch_device = torch.device("cpu")
        self.threads = threads

    def clock(self, function: Callable[[], Any]) -> float:
        """Seconds of one call."""
        return wall_clock(function)

    def warm_up(self) -> None:
        """Bring the device to the clock rate at which it works."""

    def give_back_memory(self) -> None:
        """Return what is free to the system, on glibc: holes of an earlier case's sizes help nobody."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def note(self, name: str, function: Code, operands: Sequence[Tensor]) -> str | None:
        """What is to be said of a contender's function on these operands; nothing here."""
        return None

    def times(
        self,
        calls: Mapping[str, Call],
        check: Check,
        budget: Budget,
        before: Mapping[str, float],
        stay: Collection[str],
    ) -> dict[str, Times]:
        """Times of all calls, which have been made before, by :func:`benchmarks.timing.interleaved`."""
        found = interleaved(calls, budget, before=before, stay=stay, clock=self.clock)
        return {name: Times(seconds) for name, seconds in found.items()}

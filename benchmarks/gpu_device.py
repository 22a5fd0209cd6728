"""A GPU: events for a clock, a flushed cache before each call, and calls captured as graphs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import Call, Check, Device, Sizes, Times
from benchmarks.graphs import Captures
from benchmarks.peers import Code
from benchmarks.peers_gpu import GPU_PEERS, attention_choices
from benchmarks.records import EAGER, GRAPH
from benchmarks.timing import Budget, interleaved

# Of a buffer that is read to flush the cache: bytes at least, and in multiples of the cache.
_FLUSH_BYTES, _FLUSH_CACHES = 1 << 28, 3
# Read so often that the call waits in the queue when the reading ends, however long it took to put it there.
_FLUSH_READS = 3
_WARM_UP_SECONDS, _WARM_UP_SIDE = 0.1, 2048
_PLAIN_ROUNDS = 7
_LAUNCHES = 50


class Gpu(Device):
    """A GPU of torch's, NVIDIA's or AMD's.

    A call's time is that of its captured graph, between two events around the replay, the cache having been
    flushed: by reading, because lines that were written would have to go back to memory in the call's time.
    ``cuda`` is ``torch.cuda``; a test puts something in its place that works without a GPU.
    """

    sizes = Sizes(1 << 30, (4096, 6144, 8192))
    large_map = 1 << 28
    settles = True
    reads = True
    peers = GPU_PEERS

    def __init__(
        self, index: int = 0, cuda: Any = torch.cuda, torch_device: torch.device | None = None
    ) -> None:
        super().__init__(threads=None)
        self.torch_device = torch.device("cuda", index) if torch_device is None else torch_device
        self.cuda = cuda
        cuda.set_device(self.torch_device)
        properties = cuda.get_device_properties(self.torch_device)
        cache = int(getattr(properties, "L2_cache_size", 0))
        self._flushing = torch.zeros(max(_FLUSH_BYTES, _FLUSH_CACHES * cache) // 4, device=self.torch_device)
        self._matrix = torch.zeros(_WARM_UP_SIDE, _WARM_UP_SIDE, device=self.torch_device)
        self._start, self._end = (cuda.Event(enable_timing=True) for _ in range(2))

    def clock(self, function: Callable[[], Any]) -> float:
        """Seconds between the events before and after a call, with nothing of its operands in the cache."""
        for _ in range(_FLUSH_READS):
            self._flushing.sum()
        self._start.record()
        result = function()
        self._end.record()
        self._end.synchronize()
        del result
        milliseconds: float = self._start.elapsed_time(self._end)
        return milliseconds / 1e3

    def warm_up(self) -> None:
        """Multiply matrices for a tenth of a second: an idle GPU lowers its clock."""
        stop = time.monotonic() + _WARM_UP_SECONDS
        while time.monotonic() < stop:
            for _ in range(4):
                torch.mm(self._matrix, self._matrix)
            self.cuda.synchronize()

    def give_back_memory(self) -> None:
        """Return what is free to the driver."""
        gc.collect()
        self.cuda.empty_cache()

    def launch_seconds(self) -> list[float]:
        """What the replay of a graph takes that sets one number: a part of each time that is no work."""
        number = torch.zeros(1, device=self.torch_device)
        captures = Captures(self.cuda)
        replay, _ = captures.capture(lambda: (number.fill_(1.0),))
        found = [self.clock(replay) for _ in range(_LAUNCHES)]
        captures.close()
        return found

    def note(self, name: str, function: Code, operands: Sequence[Tensor]) -> str | None:
        """Which implementation torch's fused attention is."""
        if name != "sdpa":
            return None
        return f"fused attention: {', '.join(attention_choices(function, *operands))}"

    def times(
        self,
        calls: Mapping[str, Call],
        check: Check,
        budget: Budget,
        before: Mapping[str, float],
        stay: Collection[str],
    ) -> dict[str, Times]:
        """Times of all calls as graphs, in turn, and then as plain calls, for which the graphs must be gone.

        What a graph computes is checked like the call itself. A call that cannot be captured takes its turn
        as a plain call, and its note says why.
        """
        # What is left of an earlier call's autograd graph would tie a capture to that call's stream.
        gc.collect()
        captures = Captures(self.cuda)
        functions: dict[str, Callable[[], Any]] = {}
        notes: dict[str, str] = {}
        found: dict[str, Times] = {}
        for name, call in calls.items():
            try:
                replay, results = captures.capture(call)
            except Exception as error:  # whatever it is, the call itself has worked
                notes[name] = f"timed as a plain call, as it cannot be captured: {_causes(error)}"
                continue
            replay()
            self.cuda.synchronize()
            wrong = check(name, results)
            del results
            if wrong is None:
                functions[name] = replay
            else:
                found[name] = Times([], timed_as=GRAPH, wrong=f"replayed: {wrong}")
        for name in list(notes):
            trouble = _trouble(calls[name])  # beside the graphs there may be too little memory for it
            if trouble is None:
                functions[name] = calls[name]
            else:
                found[name] = Times([], timed_as=EAGER, note=f"{notes[name]}; nor be called: {trouble}")
        self.warm_up()
        seconds = interleaved(functions, budget, before=before, stay=stay, clock=self.clock)
        functions.clear()
        captures.close()
        # The first call asks for memory again.
        plain = {name: calls[name] for name in seconds if _trouble(calls[name]) is None}
        rounds = min(_PLAIN_ROUNDS, budget.least)
        eager = interleaved(
            plain,
            budget._replace(seconds=0.0, least=rounds, most=rounds),
            before=before,
            stay=stay,
            clock=self.clock,
        )
        for name in seconds:
            kind = EAGER if name in notes else GRAPH
            found[name] = Times(seconds[name], eager.get(name, []), kind, notes.get(name))
        return found


def _trouble(call: Call) -> str | None:
    """Why a call fails, if it does."""
    try:
        call()
    except Exception as error:
        return _causes(error)
    return None


def _causes(error: BaseException) -> str:
    """The first line of an error, and of the one that it came in the way of."""
    words = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    return words if error.__context__ is None else f"{words} (after {_causes(error.__context__)})"

"""The devices that are measured, a CPU and a GPU, and how a call is timed on each."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from benchmarks.results import OK, WRONG
from benchmarks.roofline import Ceilings, cpu_ceilings, gpu_ceilings
from benchmarks.timing import Budget, interleaved, wall_clock

Call: TypeAlias = Callable[[], tuple[Tensor, ...]]
# Name of a call and what it computed when it was repeated: a complaint, or None.
Check: TypeAlias = Callable[[str, tuple[Tensor, ...]], "str | None"]

# Of a buffer that is read to flush the cache: bytes at least, and in multiples of the cache. Read so often
# that the call waits in the queue when the reading ends, however long it took to put it there.
_FLUSH_BYTES, _FLUSH_CACHES, _FLUSH_READS = 1 << 28, 3, 3
_WARM_UP_SECONDS, _WARM_UP_SIDE = 0.1, 2048


class Times(NamedTuple):
    """All times of a call in seconds, or the status and the reason why there are none."""

    seconds: list[float]
    status: str = OK
    reason: str = ""
    note: str = ""


class Device:
    """The CPU; or the host of a GPU, where ``repeat`` is given: what it costs to ask the GPU for a call.

    ``large_map``: bytes of a map from which on it matters what memory an earlier case has left behind.
    ``settles``: the first call of a function takes memory for good, which must not be counted as its own.

    Args:
        cpus: one thread runs on each of them; by default all that the process may use.
        repeat: the clock takes the mean of so many calls in a row, which are over before one could read it.
            A GPU is waited for once, at the end; where its work takes longer than asking for it, the time is
            that of the work.
        name: "cpu" or "cuda:N".
    """

    clock_name = "wall"
    large_map = 1 << 26
    settles = False

    def __init__(
        self, cpus: Sequence[int] | None = None, repeat: int | None = None, name: str = "cpu"
    ) -> None:
        self.torch_device, self._cpus, self._repeat = torch.device(name), cpus, repeat
        self.cuda: Any = None if self.torch_device.type == "cpu" else torch.cuda
        self.threads: int | None = torch.get_num_threads() if cpus is None else len(cpus)
        if self.cuda is not None:
            self.cuda.set_device(self.torch_device)
            self.clock_name, self.settles, self.threads = "calls", True, None

    def ceilings(self, dtype: str, *, quick: bool) -> Ceilings:
        """Of a dtype, on this device."""
        return cpu_ceilings(dtype, self._cpus, quick=quick)

    def clock(self, function: Callable[[], Any]) -> float:
        """Seconds of one call."""
        if self._repeat is None:
            return wall_clock(function)
        function()
        self.synchronize()
        start = time.perf_counter()
        for _ in range(self._repeat):
            function()
        self.synchronize()
        return (time.perf_counter() - start) / self._repeat

    def warm_up(self) -> None:
        """Bring the device to the clock rate at which it works."""

    def synchronize(self) -> None:
        """Wait for all calls; raises where one of them wrote where it must not."""
        if self.cuda is not None:
            self.cuda.synchronize()

    def give_back_memory(self) -> None:
        """Return what is free to the driver or the system (by glibc): holes of other sizes are of no use."""
        gc.collect()
        if self.cuda is not None:
            self.cuda.empty_cache()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def times(
        self, calls: Mapping[str, Call], check: Check, budget: Budget, **rules: Any
    ) -> dict[str, Times]:
        """Times of all calls, which have been made before, by :func:`interleaved` and its rules."""
        found = interleaved(calls, budget, clock=self.clock, **rules)
        return {name: Times(seconds) for name, seconds in found.items()}


class Gpu(Device):
    """A GPU of torch's, NVIDIA's or AMD's.

    A call's time is that of its captured graph, between two events around the replay, the cache having been
    flushed: by reading, because lines that were written would have to go back to memory in the call's time.
    ``cuda`` is ``torch.cuda``; a test puts something in its place that works without a GPU.
    """

    large_map = 1 << 28

    def __init__(self, name: str = "cuda:0", cuda: Any = torch.cuda) -> None:
        super().__init__(name=name)
        self.clock_name, self.settles, self.threads = "graph", True, None
        self.cuda = cuda
        cuda.set_device(self.torch_device)
        cache = int(getattr(cuda.get_device_properties(self.torch_device), "L2_cache_size", 0))
        self._flushing = torch.zeros(max(_FLUSH_BYTES, _FLUSH_CACHES * cache) // 4, device=self.torch_device)
        self._matrix = torch.zeros(_WARM_UP_SIDE, _WARM_UP_SIDE, device=self.torch_device)
        self._start, self._end = (cuda.Event(enable_timing=True) for _ in range(2))

    def ceilings(self, dtype: str, *, quick: bool) -> Ceilings:
        """Of a dtype, with the same clock."""
        self.warm_up()
        return gpu_ceilings(dtype, self.torch_device, self.clock, quick=quick)

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

    def times(
        self, calls: Mapping[str, Call], check: Check, budget: Budget, **rules: Any
    ) -> dict[str, Times]:
        """Times of all calls as graphs, or of the calls themselves where they cannot be captured.

        What a graph computes is checked like the call itself.
        """
        # What is left of an earlier call's autograd graph would tie a capture to that call's stream.
        gc.collect()
        captures = Captures(self.cuda)
        timed: dict[str, Callable[[], Any]] = {}
        found, notes = dict[str, Times](), dict[str, str]()
        for name, call in calls.items():
            try:
                timed[name], results = captures.capture(call)
            except Exception as error:  # whatever it is, the call itself has worked
                timed[name], notes[name] = call, f"a plain call, not captured as a graph: {cause(error)}"
                continue
            timed[name]()
            self.cuda.synchronize()
            wrong = check(name, results)
            del results
            if wrong is not None:
                del timed[name]
                found[name] = Times([], WRONG, f"replayed: {wrong}")
        self.warm_up()
        for name, seconds in interleaved(timed, budget, clock=self.clock, **rules).items():
            found[name] = Times(seconds, note=notes.get(name, ""))
        timed.clear()
        captures.close()
        return found


class Captures:
    """Graphs of several calls, which share one pool of memory, as large as the hungriest of them needs.

    So the results of one graph are overwritten by the replay of another: look at them in time, and drop them
    before the next capture. They are replayed one at a time and read nothing that another has written.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        # One stream for all: memory that is free is free to the stream alone that it was used on.
        self._side = cuda.Stream()
        self._pool = cuda.graph_pool_handle()
        self._graphs: list[Any] = []

    def capture(self, call: Call) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """What replays the call, and the results that each replay writes anew.

        Raises whatever the call or the capture does; the current stream is then as it was, and later captures
        have a pool of their own, since nothing is known of the state of this one.
        """
        cuda = self._cuda
        current = cuda.current_stream()
        self._side.wait_stream(current)
        graph = cuda.CUDAGraph()
        try:
            # Around the capture too, which does not restore the stream where it fails.
            with cuda.stream(self._side):
                for _ in range(2):  # libraries set themselves up, which a capture forbids
                    call()
                with cuda.graph(graph, pool=self._pool, stream=self._side):
                    results = tuple(value.detach() for value in call())
        except Exception:
            cuda.synchronize()
            self._pool = cuda.graph_pool_handle()
            raise
        current.wait_stream(self._side)
        self._graphs.append(graph)
        return graph.replay, results

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._cuda.synchronize()
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._cuda.empty_cache()


def make(name: str, cpus: Sequence[int], repeat: int | None = None) -> Device:
    """The device "cpu" or "cuda:N", with a clock for short calls where ``repeat`` is given."""
    return Device(cpus, repeat, name) if name == "cpu" or repeat is not None else Gpu(name)


def reset_compiler() -> None:
    """Forget what torch.compile has compiled: its limit of variants counts those of earlier cases.

    Beyond the limit Dynamo would run eager code in silence; here it is an error.
    """
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def cause(error: BaseException) -> str:
    """An error in a line, with what it came from.

    Example:
        >>> cause(ValueError("on purpose\\nand more"))
        'ValueError: on purpose'
    """
    first = next(iter(str(error).strip().splitlines()), "")[:200]
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    before = error.__cause__ or error.__context__
    return text if before is None else f"{text} (after {cause(before)})"

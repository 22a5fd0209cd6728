"""The devices that are measured, a CPU and a GPU, and how a call is timed on each."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from benchmarks.results import FAILED, OK, UNAVAILABLE, WRONG
from benchmarks.roofline import Ceilings, cpu_ceilings, gpu_ceilings
from benchmarks.timing import Budget, interleaved, wall_clock

Call: TypeAlias = Callable[[], tuple[Tensor, ...]]
# Name of a call and what it computed when it was repeated: a complaint, or None.
Check: TypeAlias = Callable[[str, tuple[Tensor, ...]], "str | None"]
ClockName: TypeAlias = Literal["wall", "graph", "calls"]

# Of a buffer that is read to flush the cache: bytes at least, and in multiples of the cache.
_FLUSH_BYTES, _FLUSH_CACHES = 1 << 28, 3
# Read so often that the call waits in the queue when the reading ends, however long it took to put it there.
_FLUSH_READS = 3
_WARM_UP_SECONDS, _WARM_UP_SIDE = 0.1, 2048
_PLAIN_ROUNDS = 7
_LAUNCHES = 50


class Times(NamedTuple):
    """All times of a call in seconds, or the status and the reason why there are none."""

    seconds: list[float]
    status: Literal["ok", "wrong", "unavailable", "failed"] = "ok"
    reason: str = ""


class Device:
    """This one is the CPU, on so many threads.

    ``clock_name``: of the clock whose times count. ``large_map``: bytes of a map from which on it matters what
    memory an earlier case has left behind. ``settles``: the first call of a function takes memory for good,
    which must not be counted as its own.
    """

    clock_name: ClockName = "wall"
    large_map = 1 << 26
    settles = False

    def __init__(self, cpus: Collection[int] = ()) -> None:
        self.torch_device = torch.device("cpu")
        self.threads: int | None = len(cpus) or torch.get_num_threads()
        self._cpus = sorted(cpus) or None

    def ceilings(self, dtype: str, *, quick: bool) -> Ceilings:
        """Of a dtype, on this device."""
        return cpu_ceilings(dtype, self._cpus, quick=quick)

    def clock(self, function: Callable[[], Any]) -> float:
        """Seconds of one call."""
        return wall_clock(function)

    def warm_up(self) -> None:
        """Bring the device to the clock rate at which it works."""

    def synchronize(self) -> None:
        """Wait for all calls."""

    def give_back_memory(self) -> None:
        """Return what is free to the system, on glibc: holes of an earlier case's sizes are of no use."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def facts(self) -> dict[str, Any]:
        """What is to be said of the device in a result file."""
        return {}

    def times(
        self,
        calls: Mapping[str, Call],
        check: Check,
        budget: Budget,
        before: Mapping[str, float],
        stay: Collection[str],
    ) -> dict[ClockName, dict[str, Times]]:
        """Times of all calls, which have been made before, by :func:`benchmarks.timing.interleaved`."""
        found = interleaved(calls, budget, before=before, stay=stay, clock=self.clock)
        return {self.clock_name: {name: Times(seconds) for name, seconds in found.items()}}


class Gpu(Device):
    """A GPU of torch's, NVIDIA's or AMD's.

    A call's time is that of its captured graph, between two events around the replay, the cache having been
    flushed: by reading, because lines that were written would have to go back to memory in the call's time.
    ``cuda`` is ``torch.cuda``; a test puts something in its place that works without a GPU.
    """

    clock_name = "graph"
    large_map = 1 << 28
    settles = True

    def __init__(
        self, index: int = 0, cuda: Any = torch.cuda, torch_device: torch.device | None = None
    ) -> None:
        self.torch_device = torch.device("cuda", index) if torch_device is None else torch_device
        self.threads = None
        self.cuda = cuda
        cuda.set_device(self.torch_device)
        properties = cuda.get_device_properties(self.torch_device)
        cache = int(getattr(properties, "L2_cache_size", 0))
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

    def synchronize(self) -> None:
        """Raises where an earlier kernel wrote where it must not."""
        self.cuda.synchronize()

    def give_back_memory(self) -> None:
        """Return what is free to the driver."""
        gc.collect()
        self.cuda.empty_cache()

    def facts(self) -> dict[str, Any]:
        """``launch_seconds``: the replay of a graph that sets one number, a part of each time that is no work."""
        number = torch.zeros(1, device=self.torch_device)
        captures = Captures(self.cuda)
        try:
            replay, _ = captures.capture(lambda: (number.fill_(1.0),))
            found = sorted(self.clock(replay) for _ in range(_LAUNCHES))
        except Exception as error:  # everything is then timed by plain calls
            return {"launch_seconds": f"nothing can be captured as a graph: {cause(error)}"}
        finally:
            captures.close()
        return {"launch_seconds": found[_LAUNCHES // 2]}

    def times(
        self,
        calls: Mapping[str, Call],
        check: Check,
        budget: Budget,
        before: Mapping[str, float],
        stay: Collection[str],
    ) -> dict[ClockName, dict[str, Times]]:
        """Times of all calls as graphs, in turn, and then as plain calls, for which the graphs must be gone.

        What a graph computes is checked like the call itself.
        """
        # What is left of an earlier call's autograd graph would tie a capture to that call's stream.
        gc.collect()
        captures = Captures(self.cuda)
        functions: dict[str, Callable[[], Any]] = {}
        graphs: dict[str, Times] = {}
        for name, call in calls.items():
            try:
                replay, results = captures.capture(call)
            except Exception as error:  # whatever it is, the call itself has worked
                graphs[name] = Times([], UNAVAILABLE, f"cannot be captured as a graph: {cause(error)}")
                continue
            replay()
            self.cuda.synchronize()
            wrong = check(name, results)
            del results
            if wrong is None:
                functions[name] = replay
            else:
                graphs[name] = Times([], WRONG, f"replayed: {wrong}")
        self.warm_up()
        timed = interleaved(functions, budget, before=before, stay=stay, clock=self.clock)
        graphs |= {name: Times(seconds) for name, seconds in timed.items()}
        functions.clear()
        captures.close()
        plain: dict[str, Times] = {}
        for name in [name for name in calls if graphs[name].status != WRONG]:
            try:
                calls[name]()  # asks for memory again
            except Exception as error:
                plain[name] = Times([], FAILED, cause(error))
        rounds = min(_PLAIN_ROUNDS, budget.least)
        few = budget._replace(seconds=0.0, least=rounds, most=rounds)
        well = {name: calls[name] for name in calls if graphs[name].status != WRONG and name not in plain}
        timed = interleaved(well, few, before=before, stay=stay, clock=self.clock)
        plain |= {name: Times(seconds, OK) for name, seconds in timed.items()}
        return {"graph": graphs, "calls": plain}


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


class Host(Device):
    """What a call costs the host: on a CPU all of it, on a GPU what it takes to ask for it.

    Its clock takes the mean of ``repeat`` calls in a row, for calls that are over before one could read a
    clock. On a GPU they wait in the queue, and the device is waited for once, at the end; so where its work
    takes longer than asking for it, the time is that of the work.
    """

    def __init__(self, cpus: Collection[int], repeat: int, device: torch.device) -> None:
        super().__init__(cpus)
        self._repeat, self.torch_device = repeat, device
        self.settles = device.type != "cpu"
        if self.settles:
            self.clock_name, self.threads = "calls", None

    def clock(self, function: Callable[[], Any]) -> float:
        """Seconds of one call; what is left of the last one is freed in the next."""
        function()
        self.synchronize()
        start = time.perf_counter()
        for _ in range(self._repeat):
            function()
        self.synchronize()
        return (time.perf_counter() - start) / self._repeat

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.torch_device.type != "cpu":
            torch.get_device_module(self.torch_device).synchronize(self.torch_device)


def make(name: str, cpus: Collection[int], repeat: int | None = None) -> Device:
    """The device "cpu" or "cuda:N", with a clock for short calls where ``repeat`` is given."""
    if repeat is not None:
        return Host(cpus, repeat, torch.device(name))
    return Device(cpus) if name == "cpu" else Gpu(torch.device(name).index or 0)


def cause(error: BaseException) -> str:
    """An error in a line, with what it came from.

    Example:
        >>> cause(ValueError("on purpose\\nand more"))
        'ValueError: on purpose'
    """
    first = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    before = error.__cause__ or error.__context__
    return text if before is None else f"{text} (after {cause(before)})"

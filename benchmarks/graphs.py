"""Calls captured as CUDA graphs: what a GPU does for a call, without what Python does to ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.device import Call

# Before a capture, on its stream: libraries set themselves up in the first calls, which a capture forbids.
_WARM_UPS = 2


class Captures:
    """Graphs of several calls, which share one pool of memory, as large as the hungriest of them needs.

    So the results of one graph are overwritten by the replay of another: look at them in time, and drop them
    before the next capture. They are replayed one at a time and read nothing that another has written.
    ``cuda`` is ``torch.cuda``, or what stands in for it.
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
                for _ in range(_WARM_UPS):
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
        """Free the graphs and their memory; nobody may replay one after this."""
        self._cuda.synchronize()
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._cuda.empty_cache()

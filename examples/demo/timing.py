"""Times on the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the body on a single PyTorch thread.

    Steps of a millisecond gain little from a second thread. If another program needs a core too, the threads
    wait for each other at every barrier, and a step takes 100 times as long (measured). A single thread also
    makes results independent of the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def interleaved_medians(
    functions: Mapping[str, Callable[[], Any]], rounds: int = 20, warmup: int = 3
) -> dict[str, float]:
    """Median seconds per call of each function on a CPU, timed in turn so that drift affects all alike.

    Example:
        >>> sorted(interleaved_medians({"a": lambda: None, "b": lambda: None}, rounds=3))
        ['a', 'b']
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(warmup + rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            result = function()
            elapsed = time.perf_counter() - start
            del result
            if index >= warmup:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}

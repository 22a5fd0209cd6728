"""Measuring time and memory of a call: what the demo and the benchmarks have in common."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["interleaved_medians", "peak_bytes"]


def peak_bytes(function: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Bytes that PyTorch's allocator holds at the peak of a call, above those held before it.

    The results count, the inputs do not. Exact: it sums up the allocator's own events.

    Example:
        >>> import torch
        >>> x = torch.ones(1000)
        >>> peak_bytes(lambda: x.clone())
        4000
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _peak_from_events(function)
    module = torch.get_device_module(device)
    module.synchronize(device)
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    result = function()
    module.synchronize(device)
    del result
    peak: int = module.max_memory_allocated(device) - before
    return peak


def _peak_from_events(function: Callable[[], Any]) -> int:
    # The profiler reports its own start and stop on stderr, below any level that it documents.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = function()
    del result
    recorded = profile.profiler
    if recorded is None or recorded.kineto_results is None:
        raise RuntimeError("the profiler recorded nothing; is another one running?")
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def interleaved_medians(
    functions: Mapping[str, Callable[[], Any]], rounds: int = 20, warmup: int = 3
) -> dict[str, float]:
    """Median seconds of each CPU function, timed in turn, so that a drift of the machine hits all alike.

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

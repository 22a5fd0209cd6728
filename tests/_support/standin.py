"""``torch.cuda`` on a machine without a GPU: the same names, the same order of calls, and no device.

A replay computes nothing, since what the capture computed is still there. It keeps a record of what was asked
of it, and refuses what a GPU would refuse, so that a test sees it.
"""

import time
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from benchmarks import devices


class Event:
    def __init__(self, enable_timing=False):
        assert enable_timing
        self.at = None

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        assert self.at is not None

    def elapsed_time(self, end):
        return max(end.at - self.at, 1e-9) * 1e3


class Stream:
    def wait_stream(self, other):
        assert isinstance(other, Stream)
        assert other is not self


class StandIn:
    """``torch.cuda``. Where ``refuses`` says so of the number of a capture, that capture fails."""

    def __init__(self, refuses=lambda number: False):
        self.refuses = refuses
        self.current = self.default = Stream()
        self.captures = self.replays = 0
        self.alive = set()
        self.pools = []
        self.under_capture = False
        owner = self

        class CUDAGraph:
            def replay(self):
                assert self in owner.alive
                assert not owner.under_capture
                owner.replays += 1

            def reset(self):
                owner.alive.remove(self)

        self.CUDAGraph = CUDAGraph
        self.Event, self.Stream = Event, Stream

    def set_device(self, device):
        assert isinstance(device, torch.device)

    def get_device_properties(self, device):
        return SimpleNamespace(L2_cache_size=1 << 20)

    def current_stream(self):
        return self.current

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def graph_pool_handle(self):
        self.pools.append(object())
        return self.pools[-1]

    @contextmanager
    def graph(self, graph, pool, stream):
        assert pool is self.pools[-1]
        assert stream is self.current is not self.default
        self.captures += 1
        number = self.captures
        self.under_capture = True
        try:
            yield
        finally:
            self.under_capture = False
            # torch leaves its own stream current where a capture fails.
            self.current = Stream() if self.refuses(number) else stream
        if self.refuses(number):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.alive.add(graph)

    def synchronize(self):
        assert not self.under_capture

    def empty_cache(self):
        assert not self.under_capture


def gpu(monkeypatch, refuses=lambda number: False):
    """The device that measures on GPUs, on this CPU, with small buffers and short pauses."""
    monkeypatch.setattr(devices, "_FLUSH_BYTES", 1 << 12)
    monkeypatch.setattr(devices, "_FLUSH_CACHES", 0)
    monkeypatch.setattr(devices, "_WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(devices, "_WARM_UP_SIDE", 8)
    stand_in = StandIn(refuses)
    return devices.Gpu("cpu", stand_in), stand_in

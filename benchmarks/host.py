"""A clock for calls that are over before one could read it: of many calls in a row, each one's share."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.device import Device


class Host(Device):
    """What a call costs the host: on a CPU all of it, on a GPU what it takes to ask for it.

    On a GPU the calls of a turn wait in the queue, and the device is waited for once, at the end; so where
    its work takes longer than asking for it, the time is that of the work.
    """

    def __init__(self, threads: int | None, repeat: int, torch_device: torch.device) -> None:
        on_gpu = torch_device.type != "cpu"
        super().__init__(None if on_gpu else threads)
        self.torch_device = torch_device
        self.repeat = repeat
        self.settles = on_gpu
        if on_gpu:
            from benchmarks.peers_gpu import GPU_PEERS

            self.peers = GPU_PEERS

    def clock(self, function: Callable[[], Any]) -> float:
        """Seconds of one call, as the mean of many; what is left of the last one is freed in the next."""
        function()
        self._wait()
        start = time.perf_counter()
        for _ in range(self.repeat):
            function()
        self._wait()
        return (time.perf_counter() - start) / self.repeat

    def give_back_memory(self) -> None:
        """Return what is free, to the system or to the driver."""
        if self.torch_device.type == "cpu":
            super().give_back_memory()
            return
        gc.collect()
        torch.get_device_module(self.torch_device).empty_cache()

    def _wait(self) -> None:
        if self.torch_device.type != "cpu":
            torch.get_device_module(self.torch_device).synchronize(self.torch_device)

"""A single process, or several started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


@dataclass(frozen=True)
class Group:
    """This process among all.

    Attributes:
        rank: number of this process.
        size: number of processes.
        device: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def say(self, *words: object) -> None:
        """Print, once for all processes."""
        if self.first:
            print(*words, flush=True)

    def gathered(self, thing: Any) -> list[Any]:
        """The objects of all processes in order of rank. All processes must call it."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def summed(self, numbers: Tensor) -> Tensor:
        """The sum of the tensors of all processes, in place. All processes must call it."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def share_buffers(self, *modules: nn.Module | None) -> None:
        """Copy the first process's buffers to all: plain batch norm has different statistics in each."""
        if self.size == 1:
            return
        for module in modules:
            for buffer in () if module is None else module.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def group(device: str | None) -> Iterator[Group]:
    """The processes that torchrun has started, or this one alone.

    Args:
        device: as in torch; None for CUDA if available, otherwise the CPU.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if size == 1:
        yield Group(0, 1, kind)
        return
    if kind.type == "cuda":
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(kind)
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), size, kind)
        # Gloo's threads need the interpreter to free what they have sent. Without the barrier, a process that
        # exits right after a collective can deadlock with them.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def synchronised(net: nn.Module, group: Group, wanted: bool) -> nn.Module:
    """``net`` with SyncBatchNorm if it is wanted and possible; otherwise prints why not."""
    if not wanted:
        return net
    if group.size == 1:
        group.say("sync_bn: with one process, plain batch norm is the same and is used")
        return net
    if group.device.type != "cuda":
        group.say(
            f"sync_bn: SyncBatchNorm does not run on {group.device.type}; each process normalises with the "
            "statistics of its own images"
        )
        return net
    made: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return made


def wrapped(net: nn.Module, group: Group) -> nn.Module:
    """``net`` with gradients averaged over the processes."""
    if group.size == 1:
        return net
    ids = [group.device.index] if group.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(net, device_ids=ids)

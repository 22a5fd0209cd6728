"""Runs checks in several processes that talk through gloo."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed as dist


def two_processes(*checks: Callable[[int], None]) -> None:
    """Call each check in both processes, with the rank. A failure of either is raised here."""
    processes(2, *checks)


def processes(count: int, *checks: Callable[[int], None]) -> None:
    """Call each check in so many processes, with the rank. A failure of any is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (count, f"{folder}/store", checks), nprocs=count)


def _work(rank: int, count: int, store: str, checks: tuple[Callable[[int], None], ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    limit = timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=limit)
    try:
        for check in checks:
            check(rank)
            dist.barrier()
    finally:
        dist.destroy_process_group()

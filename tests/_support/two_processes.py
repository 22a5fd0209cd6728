"""Runs checks in two processes that talk through gloo."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed as dist


def two_processes(*checks: Callable[[int], None]) -> None:
    """Call each check in both processes, with the rank. A failure of either is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (f"{folder}/store", checks), nprocs=2)


def _work(rank: int, store: str, checks: tuple[Callable[[int], None], ...]) -> None:
    torch.set_num_threads(1)
    limit = timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    try:
        for check in checks:
            check(rank)
            dist.barrier()
    finally:
        dist.destroy_process_group()

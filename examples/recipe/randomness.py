"""Reproducible random numbers: states of all generators, and seeds of single samples."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

Draw = tuple[int, int]  # epoch and index


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch (CUDA too) from a key."""
    first, second = _words(*key)
    random.seed(first)
    np.random.seed(second % 2**32)
    torch.manual_seed(first)


def states(device: torch.device) -> dict[str, Any]:
    """The state of each generator, as values that ``torch.load(weights_only=True)`` reads."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(saved: dict[str, Any], device: torch.device) -> None:
    """Restore the state of each generator from ``states``."""
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(saved["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)


class Seeded(Dataset[Any]):
    """A dataset that seeds the generators for each sample (epoch, index).

    A sample then does not depend on which worker draws it, on the number of workers, or on interruptions of
    the run. The generators outside are not affected.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        epoch, index = draw
        with _generators(self.seed, epoch, index):
            return self.dataset[index]


@contextmanager
def _generators(*key: int) -> Iterator[None]:
    first, second = _words(*key)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(first)
        np.random.seed(second % 2**32)
        # Not torch.manual_seed, which would initialise CUDA in a worker.
        torch.default_generator.manual_seed(first)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _words(*key: int) -> tuple[int, int]:
    first, second = np.random.SeedSequence(key).generate_state(2, np.uint64).tolist()
    return int(first) >> 1, int(second)  # torch accepts seeds below 2^63

"""Which images each step and process gets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from recipe.randomness import Draw


class StepSampler(Sampler[list[Draw]]):
    """Batches of (epoch, index), reshuffled each epoch, starting at any step.

    The images of a step do not depend on the number of processes and forward passes: step s of an epoch has
    images s * batch to (s + 1) * batch of the epoch's order. An incomplete last batch is dropped.

    Args:
        length: number of images.
        batch: images per step, over all processes and passes.
        passes: forward passes per step in each process.
        rank: this process.
        size: number of processes.
        seed: of the order.

    Raises:
        ValueError: ``batch`` is larger than ``length`` or not a multiple of ``passes * size``.

    Example:
        >>> sampler = StepSampler(8, batch=4, passes=2, rank=0, size=2)
        >>> len(list(sampler)), sampler.steps
        (4, 2)
        >>> sampler.start(epoch=3, step=1)
        >>> [[epoch for epoch, index in batch] for batch in sampler]
        [[3], [3]]
    """

    def __init__(
        self, length: int, *, batch: int, passes: int = 1, rank: int = 0, size: int = 1, seed: int = 0
    ) -> None:
        if batch > length:
            raise ValueError(f"`batch` must be at most the {length} training images, got {batch}")
        if batch < 1 or batch % (passes * size):
            raise ValueError(
                f"`batch` must be a multiple of passes * processes = {passes} * {size}, got {batch}"
            )
        self.length, self.batch, self.passes, self.rank, self.size = length, batch, passes, rank, size
        self.seed = seed
        self.steps = length // batch
        self.start(0, 0)

    def start(self, epoch: int, step: int) -> None:
        """Make the next iteration start at this step of this epoch."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        return (self.steps - self.step) * self.passes

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length).tolist()
        share = self.batch // (self.passes * self.size)
        for step in range(self.step, self.steps):
            for number in range(self.passes):
                start = step * self.batch + (number * self.size + self.rank) * share
                yield [(epoch, index) for index in order[start : start + share]]


class Shard(Sampler[Draw]):
    """Every size-th image, for evaluation. Each image is in one shard; shard sizes may differ by one."""

    def __init__(self, length: int, *, rank: int = 0, size: int = 1) -> None:
        self.indices = range(rank, length, size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Draw]:
        return ((0, index) for index in self.indices)

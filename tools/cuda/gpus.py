"""Data sheets of the GPUs that the model knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU, as far as the model needs it.

    Args:
        name: as it is sold.
        processors: multiprocessors.
        clock: Hz, under load.
        memory: achievable bandwidth of copies, bytes per second.
        cache: bandwidth of the L2 cache, bytes per second.
        latency: of memory, cycles.
        product_cycles: of a multiprocessor for 16 x 8 x 16 in 16 bits or 16 x 8 x 8 in TF32, by mma.sync.
        shared_bytes: shared memory of a multiprocessor.
        block_shared_bytes: the most shared memory that a block can have.
        max_ranks: the most blocks of a cluster.
    """

    name: str
    processors: int
    clock: float
    memory: float
    cache: float
    latency: int
    product_cycles: float
    shared_bytes: int
    block_shared_bytes: int
    max_ranks: int
    registers: int = 1 << 16
    threads: int = 2048


_KB = 1 << 10

GPUS = {
    "80": Gpu("A100", 108, 1.41e9, 1.6e12, 3.8e12, 900, 2.0, 164 * _KB, 163 * _KB, 1),
    "90a": Gpu("H100", 132, 1.70e9, 3.0e12, 5.5e12, 1000, 1.6, 228 * _KB, 227 * _KB, 16),
    "100": Gpu("B200", 148, 1.85e9, 7.0e12, 1.1e13, 1100, 1.6, 228 * _KB, 227 * _KB, 16),
}

"""Data sheets of the GPUs that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget

from vt_fast.backends.triton.schedule import Traits


@dataclass(frozen=True)
class Gpu:
    """A GPU, as far as compiling and the time model need it.

    Args:
        architecture: the name that launch settings go by.
        target: what Triton compiles for.
        processors: multiprocessors, on AMD compute units.
        clock: Hz.
        memory: achievable bandwidth, bytes per second.
        cache: bandwidth of the L2 cache, bytes per second.
        cache_bytes: size of the L2 cache.
        latency: of memory, seconds.
        shared_bytes: shared memory of a multiprocessor.
        program_shared_bytes: the most shared memory that one program can have.
        threads: the most threads of a multiprocessor.
        registers: 32-bit registers of a multiprocessor.
        rates: FLOP/s of products in 16 bits ("16"), TF32 ("tf32") and float32 ("ieee").
    """

    architecture: str
    target: GPUTarget
    processors: int
    clock: float
    memory: float
    cache: float
    cache_bytes: int
    latency: float
    shared_bytes: int
    program_shared_bytes: int
    threads: int
    registers: int
    rates: dict[str, float]

    @property
    def traits(self) -> Traits:
        """What launches depend on."""
        return Traits(self.architecture, self.processors, self.program_shared_bytes)


_KB, _MB = 1 << 10, 1 << 20

# A100, RTX 3090, H100, B200 and MI300X.
GPUS = {
    gpu.architecture: gpu
    for gpu in (
        Gpu("sm_80", GPUTarget("cuda", 80, 32), 108, 1.41e9, 1.75e12, 4.0e12, 40 * _MB, 7e-7, 164 * _KB,
            163 * _KB, 2048, 1 << 16, {"16": 312e12, "tf32": 156e12, "ieee": 19.5e12}),
        Gpu("sm_86", GPUTarget("cuda", 86, 32), 82, 1.70e9, 0.85e12, 2.0e12, 6 * _MB, 7e-7, 100 * _KB,
            99 * _KB, 1536, 1 << 16, {"16": 71e12, "tf32": 35e12, "ieee": 35e12}),
        Gpu("sm_90", GPUTarget("cuda", 90, 32), 132, 1.755e9, 3.0e12, 5.7e12, 50 * _MB, 6e-7, 228 * _KB,
            227 * _KB, 2048, 1 << 16, {"16": 989e12, "tf32": 494e12, "ieee": 67e12}),
        Gpu("sm_100", GPUTarget("cuda", 100, 32), 148, 1.85e9, 7.2e12, 1.1e13, 126 * _MB, 7e-7, 228 * _KB,
            227 * _KB, 2048, 1 << 16, {"16": 2250e12, "tf32": 1100e12, "ieee": 80e12}),
        Gpu("gfx942", GPUTarget("hip", "gfx942", 64), 304, 2.1e9, 4.3e12, 1.0e13, 256 * _MB, 9e-7, 64 * _KB,
            64 * _KB, 2048, 1 << 17, {"16": 1307e12, "tf32": 163e12, "ieee": 163e12}),
    )
}  # fmt: skip

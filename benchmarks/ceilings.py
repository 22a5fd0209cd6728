"""What the machine can do at best: copy bandwidth and matrix rate, in the process that measures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from benchmarks.device import Device
from benchmarks.operands import TORCH_DTYPES
from benchmarks.records import HasRates


@dataclass(frozen=True)
class Rates(HasRates):
    """Seconds of each repetition, and what one does: bytes read and written, FLOPs, or bytes read alone."""

    copy_seconds: list[float]
    copy_bytes: int
    matrix_seconds: list[float]
    matrix_flops: int
    read_seconds: list[float]
    read_bytes: int

    def __add__(self, other: Rates) -> Rates:
        """The repetitions of both, which must be of the same."""
        return dataclasses.replace(
            self,
            copy_seconds=self.copy_seconds + other.copy_seconds,
            matrix_seconds=self.matrix_seconds + other.matrix_seconds,
            read_seconds=self.read_seconds + other.read_seconds,
        )


class Ceilings:
    """The two ceilings of one dtype: the copy of a large tensor, and the best of a few square products.

    Measured again before and after every case: the machine of the first minute is not that of the last. Where
    a device says so, reading alone is measured too, for information.
    """

    def __init__(self, dtype: str, *, quick: bool = False, device: Device | None = None) -> None:
        self._device = Device() if device is None else device
        sizes = self._device.quick_sizes if quick else self._device.sizes
        where = self._device.torch_device
        self._source = torch.ones(sizes.copy_bytes // 4, device=where)
        self._target = torch.empty_like(self._source)
        found = {}
        self._device.warm_up()
        for side in sizes.matrix_sides:
            self._matrix = torch.randn(side, side, device=where).to(TORCH_DTYPES[dtype])
            self._product()
            found[2 * side**3 / min(self._device.clock(self._product) for _ in range(3))] = self._matrix
        self._matrix = found[max(found)]
        self._copy()
        self._read()

    def _copy(self) -> torch.Tensor:
        return self._target.copy_(self._source)

    def _read(self) -> torch.Tensor:
        return self._source.sum()

    def _product(self) -> torch.Tensor:
        return torch.mm(self._matrix, self._matrix)

    def measure(self, repetitions: int = 3) -> Rates:
        """Both ceilings now."""
        clock, reads = self._device.clock, self._device.reads
        return Rates(
            [clock(self._copy) for _ in range(repetitions)],
            2 * self._source.nbytes,
            [clock(self._product) for _ in range(repetitions)],
            2 * self._matrix.shape[0] ** 3,
            [clock(self._read) for _ in range(repetitions)] if reads else [],
            self._source.nbytes if reads else 0,
        )

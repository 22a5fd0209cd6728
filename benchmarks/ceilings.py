"""What the machine can do at best: copy bandwidth and matrix rate, in the process that measures."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import torch

from benchmarks.operands import TORCH_DTYPES
from benchmarks.timing import Clock, wall_clock

_COPY_BYTES = 1 << 27
_MATRIX_SIZES = (512, 768, 1024)
_QUICK_COPY_BYTES = 1 << 22
_QUICK_MATRIX_SIZES = (64, 128)


class Rates(NamedTuple):
    """Seconds of each repetition, and what one does: bytes read and written, or FLOPs."""

    copy_seconds: list[float]
    copy_bytes: int
    matrix_seconds: list[float]
    matrix_flops: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second, reads and writes both counted."""
        return self.copy_bytes / statistics.median(self.copy_seconds)

    @property
    def matrix_rate(self) -> float:
        """FLOPs per second."""
        return self.matrix_flops / statistics.median(self.matrix_seconds)

    def __add__(self, other: Rates) -> Rates:  # type: ignore[override]
        """The repetitions of both, which must be of the same."""
        return self._replace(
            copy_seconds=self.copy_seconds + other.copy_seconds,
            matrix_seconds=self.matrix_seconds + other.matrix_seconds,
        )


class Ceilings:
    """The two ceilings of one dtype: the copy of a large tensor, and the best of a few square products.

    Measured again before and after every case: the machine of the first minute is not that of the last.
    """

    def __init__(self, dtype: str, *, quick: bool = False, clock: Clock = wall_clock) -> None:
        self._clock = clock
        size = _QUICK_COPY_BYTES if quick else _COPY_BYTES
        self._source = torch.ones(size // 4)
        self._target = torch.empty_like(self._source)
        found = {}
        for side in _QUICK_MATRIX_SIZES if quick else _MATRIX_SIZES:
            self._matrix = torch.randn(side, side).to(TORCH_DTYPES[dtype])
            self._product()
            found[2 * side**3 / min(clock(self._product) for _ in range(3))] = self._matrix
        self._matrix = found[max(found)]
        self._copy()

    def _copy(self) -> torch.Tensor:
        return self._target.copy_(self._source)

    def _product(self) -> torch.Tensor:
        return torch.mm(self._matrix, self._matrix)

    def measure(self, repetitions: int = 3) -> Rates:
        """Both ceilings now."""
        return Rates(
            [self._clock(self._copy) for _ in range(repetitions)],
            2 * self._source.nbytes,
            [self._clock(self._product) for _ in range(repetitions)],
            2 * self._matrix.shape[0] ** 3,
        )

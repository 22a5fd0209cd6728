"""The least time that a job can take on this machine: compulsory bytes and FLOPs against measured ceilings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from benchmarks.results import Row


class Work(NamedTuple):
    """What no implementation can avoid. What runs one after another is a sequence of these: floors add up.

    Args:
        reads: bytes.
        writes: bytes.
        flops: of matrix products, two a multiply-add.
    """

    reads: int
    writes: int
    flops: int


class Floor(NamedTuple):
    """Seconds, the term that sets most of them, and the 20 % and 80 % quantiles of what was measured."""

    seconds: float
    bound: Literal["bytes", "flops"]
    low: float
    high: float


class Ceilings(Protocol):
    """The ceilings of one process, device and dtype. Make one per dtype and keep it over all cases."""

    def measure(self, work: Sequence[Work]) -> None:
        """Probe what bounds this work, now. Call it before and after a case; all probes are pooled."""

    def floor(self, work: Sequence[Work]) -> Floor:
        """By the probes so far; :meth:`measure` must have been called with this work."""

    def rows(self) -> list[Row]:
        """One a ceiling, for a result file; a rate is ``work / median``."""


def cpu_ceilings(dtype: str, cpus: Sequence[int] | None = None, *, quick: bool = False) -> Ceilings:
    """Of a CPU, by the project's own probe, which is compiled on first use.

    Args:
        dtype: "fp32", "bf16", "fp16" or "fp64".
        cpus: one thread runs on each of them; by default all that this process may use.
        quick: one short probe each.

    Raises:
        RuntimeError: the probe does not compile; the message says what to do.
    """
    raise NotImplementedError


def gpu_ceilings(
    dtype: str, device: Any, clock: Callable[[Callable[[], Any]], float], *, quick: bool = False
) -> Ceilings:
    """Of a GPU: the bandwidth of copies, and the best rate of ``torch.mm``.

    Args:
        dtype: as above.
        device: as torch takes it.
        clock: seconds of one call, with whatever is flushed before it.
        quick: one short probe each.
    """
    raise NotImplementedError


def op_work(
    op: str, which: str, batch: int, pixels: int, channels: int, tokens: int, itemsize: int
) -> tuple[Work, ...]:
    """Compulsory work of an op on a map of (batch, pixels, channels); ``which`` is the pass.

    Example:
        >>> op_work("tokenize", "forward", 1, 100, 8, 4, itemsize=2)
        (Work(reads=1600, writes=0, flops=12800),)
    """
    raise NotImplementedError

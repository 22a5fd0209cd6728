"""The rules of timing: interleaved rounds in random order, and limits for whole runs and for compilations."""

from __future__ import annotations

import math
import random
import signal
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple


class Budget(NamedTuple):
    """How many rounds a cell gets: at least ``least``, and more until ``seconds`` are spent.

    A cell is slow where ``least`` rounds would exceed ``patience`` seconds, by what the first one took. There
    ``few`` rounds are enough. Peers far behind the fastest one leave the rotation and keep the times that
    they have: in a slow cell after one round, if their best call, the one before the rounds included, took
    ``behind`` times as long as the fastest peer's; in any cell after ``few`` rounds, if it took
    ``far_behind`` times as long. Where the calls before the rounds already show that a cell is slow, a peer
    that took ``hopeless`` times as long as the fastest one is not called again, and keeps the time of that
    call.
    """

    seconds: float = 0.25
    least: int = 7
    most: int = 200
    few: int = 3
    patience: float = 8.0
    behind: float = 1.5
    far_behind: float = 2.5
    hopeless: float = 4.0


QUICK = Budget(seconds=0.0, least=3, most=3, few=3)
# The shortest calls take 10 us, and 11 rounds of them say little.
GPU = Budget(seconds=0.2, least=11, most=50)


class Quantiles(NamedTuple):
    """Median, and what leaves a fifth of all values below and above it."""

    median: float
    low: float
    high: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Of at least one value.

    Example:
        >>> quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
        Quantiles(median=3.5, low=2.0, high=5.0)
    """
    if len(values) == 1:
        return Quantiles(*values, *values, *values)
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return Quantiles(statistics.median(values), low, high)


def wall_clock(function: Callable[[], Any]) -> float:
    """Seconds of a call on a CPU; freeing its results is not counted."""
    start = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    budget: Budget,
    *,
    before: Mapping[str, float] | None = None,
    stay: Collection[str] = (),
    clock: Callable[[Callable[[], Any]], float] = wall_clock,
) -> dict[str, list[float]]:
    """Seconds of every call of every function, all of which have been called before.

    ``before`` has what that call took, where it is known. Functions in ``stay`` never leave the rotation, and
    none leaves it because of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    best = {name: (before or {}).get(name, math.inf) for name in functions}
    order, dice = _worth_timing(functions, before or {}, stay, budget, seconds), random.Random(0)
    spent, rounds, slow = 0.0, 0, False
    while order and not _enough(rounds, spent, slow, budget):
        # Shuffled, not rotated: otherwise each would always find the caches as the same neighbour left them.
        dice.shuffle(order)
        for name in order:
            elapsed = clock(functions[name])
            seconds[name].append(elapsed)
            best[name] = min(best[name], elapsed)
            spent += elapsed
        rounds += 1
        if rounds == 1:
            slow = spent > budget.patience / budget.least
        limit = budget.behind if slow and rounds == 1 else math.inf
        limit = min(limit, budget.far_behind if rounds == budget.few else math.inf)
        least = min((best[name] for name in order if name not in stay), default=0.0)
        order = [name for name in order if name in stay or best[name] <= limit * least]
    return seconds


def _worth_timing(
    functions: Iterable[str],
    before: Mapping[str, float],
    stay: Collection[str],
    budget: Budget,
    seconds: dict[str, list[float]],
) -> list[str]:
    """The functions to time. The others get the time of the call before."""
    names = list(functions)
    known = {name: before[name] for name in names if name in before and name not in stay}
    if not known or sum(known.values()) * budget.least <= budget.patience:
        return names
    least = min(known.values())
    for name, taken in known.items():
        if taken > budget.hopeless * least:
            seconds[name].append(taken)
    return [name for name in names if not seconds[name]]


def _enough(rounds: int, spent: float, slow: bool, budget: Budget) -> bool:
    if rounds < (budget.few if slow else budget.least):
        return False
    return rounds >= budget.most or spent >= (budget.patience if slow else budget.seconds)


class _Late(BaseException):
    """Not an Exception, lest a compiler catch it and go on."""


class Limits:
    """The seconds that a run has, and those that one compilation may take; None for no limit."""

    def __init__(
        self,
        seconds: float | None = None,
        compilation: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now, self._longest = now, 0.0
        self._end = math.inf if seconds is None else now() + seconds
        self._compilation = math.inf if compilation is None else compilation

    @property
    def remaining(self) -> float:
        """Seconds of the run, at least 0; infinite where there is no limit."""
        return max(0.0, self._end - self._now())

    def refusal(self) -> str | None:
        """Why no compilation begins any more: one has taken longer than the time that remains."""
        left, longest = self.remaining, self._longest
        return (
            None if left > longest else f"not compiled: {left:.0f} s are left, and one took {longest:.0f} s"
        )

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Around a compilation, which is interrupted where Python runs in the main thread.

        Raises:
            TimeoutError: it took too long.
        """
        seconds = min(self._compilation, self.remaining)
        start, before = self._now(), None
        if seconds < math.inf:
            before = signal.signal(signal.SIGALRM, _ring)
            # An alarm in code that may not be interrupted is lost; there is another one every 5 seconds.
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 5.0)
        try:
            yield
        except _Late:
            raise TimeoutError(f"compiling was given up after {seconds:.0f} s") from None
        finally:
            if before is not None:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                signal.signal(signal.SIGALRM, before)
            self._longest = max(self._longest, self._now() - start)


def _ring(number: int, frame: FrameType | None) -> None:
    raise _Late

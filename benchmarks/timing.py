"""The rules of timing: everybody in turn, in another order each round, all times kept."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

Clock = Callable[[Callable[[], Any]], float]


class Budget(NamedTuple):
    """How many rounds a cell gets: at least ``least``, and more until ``seconds`` are spent.

    A cell is slow where ``least`` rounds would exceed ``patience`` seconds, by what the first one took; there
    ``few`` rounds may do. Who cannot be the best peer any more leaves the rotation and keeps the times that
    it has: in a slow cell after one round if its best call, the one before the rounds included, took
    ``behind`` times as long as the best peer's; in any cell after ``few`` rounds if it took ``far_behind``
    times as long.
    """

    seconds: float = 0.25
    least: int = 7
    most: int = 200
    few: int = 3
    patience: float = 8.0
    behind: float = 1.5
    far_behind: float = 2.5


QUICK = Budget(seconds=0.0, least=3, most=3, few=3)


def wall_clock(function: Callable[[], Any]) -> float:
    """Seconds of a call on a CPU; freeing its results is not counted."""
    start = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


class Quantiles(NamedTuple):
    """Median, and what leaves a fifth of all values below and above it."""

    median: float
    low: float
    high: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Of at least one value.

    Raises:
        ValueError: there is none.

    Example:
        >>> quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
        Quantiles(median=3.5, low=2.0, high=5.0)
    """
    if not values:
        raise ValueError("`values` must have at least one number, got none")
    if len(values) == 1:
        return Quantiles(values[0], values[0], values[0])
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return Quantiles(statistics.median(values), low, high)


def spread(seconds: Sequence[float]) -> tuple[float, float]:
    """The 20 % and the 80 % quantile of times, in multiples of their median.

    Raises:
        ValueError: there are no times.

    Example:
        >>> spread([8.0, 9.0, 10.0, 12.0, 14.0, 40.0])
        (0.8181818181818182, 1.2727272727272727)
    """
    median, low, high = quantiles(seconds)
    return low / median, high / median


def spread_text(seconds: Sequence[float]) -> str:
    """The spread for a table.

    Example:
        >>> spread_text([8.0, 9.0, 10.0, 12.0, 14.0, 40.0])
        '-18% +27%'
    """
    return " ".join(f"{share - 1:+.0%}" for share in spread(seconds)) if seconds else "-"


class HasSeconds:
    """What is said of somebody's times, whatever dataclass has them.

    It is none itself: each says where in its JSON they stand.
    """

    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The 20 % and the 80 % quantile of its times, in multiples of the median."""
        return spread(self.seconds)


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    budget: Budget,
    *,
    before: Mapping[str, float] | None = None,
    stay: Collection[str] = (),
    clock: Clock = wall_clock,
) -> dict[str, list[float]]:
    """Seconds of every call of every function, all of which have been called before.

    ``before`` has what that call took, where it is known, for the rule of who leaves. Those named in
    ``stay`` never leave the rotation, and nobody leaves it because of them.

    Example:
        >>> times = interleaved({"a": lambda: 1, "b": lambda: 2}, QUICK)
        >>> {name: len(values) for name, values in times.items()}
        {'a': 3, 'b': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    best = {name: (before or {}).get(name, math.inf) for name in functions}
    order, dice = list(functions), random.Random(0)
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
        if slow and rounds == 1:
            order = _in_the_running(order, best, stay, budget.behind)
        if rounds == budget.few:
            order = _in_the_running(order, best, stay, budget.far_behind)
    return seconds


def _in_the_running(
    order: list[str], best: Mapping[str, float], stay: Collection[str], limit: float
) -> list[str]:
    least = min((best[name] for name in order if name not in stay), default=0.0)
    return [name for name in order if name in stay or best[name] <= limit * least]


def _enough(rounds: int, spent: float, slow: bool, budget: Budget) -> bool:
    if rounds < (budget.few if slow else budget.least):
        return False
    return rounds >= budget.most or spent >= (budget.patience if slow else budget.seconds)

"""The rules of timing: everybody in turn, in another order each round, all times kept."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Clock = Callable[[Callable[[], Any]], float]


class Budget(NamedTuple):
    """How many rounds a cell gets: at least ``least``, and more until ``seconds`` are spent.

    Where one round takes so long that ``least`` of them exceed ``patience`` seconds, ``few`` suffice. A
    contender whose best time after ``few`` rounds is ``hopeless`` times the best of all leaves the
    rotation and keeps its times: it is the fastest in no table, and its median is known well enough.
    """

    seconds: float = 1.0
    least: int = 7
    most: int = 200
    few: int = 3
    patience: float = 8.0
    hopeless: float = 2.5


QUICK = Budget(seconds=0.0, least=3, most=3, few=3)


def wall_clock(function: Callable[[], Any]) -> float:
    """Seconds of a call on a CPU; freeing its results is not counted."""
    start = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def interleaved(
    functions: Mapping[str, Callable[[], Any]], budget: Budget, clock: Clock = wall_clock
) -> dict[str, list[float]]:
    """Seconds of every call of every function, all of which have been called before.

    Example:
        >>> times = interleaved({"a": lambda: 1, "b": lambda: 2}, QUICK)
        >>> {name: len(values) for name, values in times.items()}
        {'a': 3, 'b': 3}
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    order, dice = list(functions), random.Random(0)
    spent, rounds = 0.0, 0
    while order and not _enough(rounds, spent, budget):
        # Shuffled, not rotated: otherwise each would always find the caches as the same neighbour left them.
        dice.shuffle(order)
        for name in order:
            elapsed = clock(functions[name])
            seconds[name].append(elapsed)
            spent += elapsed
        rounds += 1
        if rounds == budget.few:
            best = {name: min(seconds[name]) for name in order}
            order = [name for name in order if best[name] <= budget.hopeless * min(best.values())]
    return seconds


def _enough(rounds: int, spent: float, budget: Budget) -> bool:
    if rounds < budget.few or rounds >= budget.most:
        return rounds >= budget.most
    if rounds < budget.least:
        return spent >= budget.patience
    return spent >= budget.seconds

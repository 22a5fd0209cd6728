"""What of a difference between two runs is a change of the code, and what the machine's doing.

The times of one process say how far its median may be off *in that process*. The next process has other
pages, another neighbour on the machine, another clock rate, and its times lie elsewhere by several times as
much. So that is measured too, on code that nobody has changed: the peers of the same cells in the same runs.

1. A figure's change is log(NEW's median / OLD's median).
2. The machine's drift in a cell is the median of its peers' changes, and is taken off. A peer's own drift is
   that of the *other* peers of its cell; what remains of its change is scatter, and nothing else.
3. A figure's noise is ``z`` times the root of the squares of two terms: the standard error of its medians,
   from the 20 % and 80 % quantiles of both runs' raw times, and the scatter of the peers, from the 99 %
   quantile of what remained of them. ``z`` is such that one comparison in twenty would name any figure by
   mistake, if the scatter were normal; that it has longer tails is why its scale is taken so far out.
4. The same again for the means of groups of cells, in which a small change of all of them is seen, those left
   out that have been named already. The scatter of means is taken to fall with the root of the number.

Nothing is drawn at random: the same two files always give the same answer.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from benchmarks.figures import CEILING, CONTROL, OURS, Figure, Incomparable
from benchmarks.timing import spread

SLOWER, FASTER, SAME = "slower", "faster", "same"
# How often a comparison may name a figure by mistake.
_MISTAKES = 0.05
# How far out the peers' scatter is read off.
_TAIL = 0.99
_NORMAL = NormalDist()
# Fewer times say nothing of a quantile.
LEAST_TIMES = 3


class Change(NamedTuple):
    """How a figure, or the mean of several, differs between two runs, in natural logs.

    ``raw``: of NEW's median over OLD's. ``drift``: what the machine did. ``error``: of the medians, by the
    raw times.
    """

    cell: str
    group: str
    stratum: str
    name: str
    role: str
    raw: float
    drift: float
    error: float
    cells: int = 1

    @property
    def left(self) -> float:
        """What the machine does not explain."""
        return self.raw - self.drift


class Verdict(NamedTuple):
    """A change, the noise that it must exceed to be one (a log too), and whether it does."""

    change: Change
    noise: float

    @property
    def word(self) -> str:
        """Slower, faster, or the same as far as one can tell."""
        if abs(self.change.left) <= self.noise:
            return SAME
        return SLOWER if self.change.left > 0 else FASTER


def change(old: Figure, new: Figure) -> Change:
    """How a figure has changed, the drift not yet known."""
    raw = math.log(statistics.median(new.seconds) / statistics.median(old.seconds))
    error = math.hypot(standard_error(old.seconds), standard_error(new.seconds))
    return Change(new.cell, new.group, new.stratum, new.name, new.role, raw, 0.0, error)


def standard_error(seconds: Sequence[float]) -> float:
    """Of a median, relative to it, by the 20 % and 80 % quantiles, as of normal numbers.

    Example:
        >>> round(standard_error([9.0, 9.5, 10.0, 10.5, 11.0]), 4)
        0.04
    """
    low, high = spread(seconds)
    deviation = (high - low) / (2 * _NORMAL.inv_cdf(0.8))
    return math.sqrt(math.pi / 2 / len(seconds)) * deviation


def without_drift(changes: Iterable[Change]) -> list[Change]:
    """The changes of ours and of the controls, with their drift.

    Controls are the peers; in a stratum without peers, the ceilings. In a cell without another control the
    stratum's median drift is taken.

    Raises:
        Incomparable: a stratum has no control.
    """
    strata: dict[str, list[Change]] = defaultdict(list)
    for each in changes:
        strata[each.stratum].append(each)
    found: list[Change] = []
    for stratum, members in strata.items():
        ours = [each for each in members if each.role == OURS]
        controls = [each for each in members if each.role == CONTROL]
        controls = controls or [each._replace(role=CONTROL) for each in members if each.role == CEILING]
        if ours and not controls:
            raise Incomparable(
                f"{stratum}: no peer and no ceiling has times in both files, and nothing else tells what the "
                "machine did from what the code did; measure some peers too"
            )
        cells: dict[str, list[Change]] = defaultdict(list)
        for each in controls:
            cells[each.cell].append(each)
        overall = statistics.median(each.raw for each in controls) if controls else 0.0
        for each in (*ours, *controls):
            others = [other.raw for other in cells[each.cell] if other is not each]
            found.append(each._replace(drift=statistics.median(others) if others else overall))
    return found


def means(changes: Iterable[Change]) -> list[Change]:
    """The mean change of everybody in each group of at least two cells."""
    groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for each in changes:
        groups[each.group, each.name].append(each)
    return [
        members[0]._replace(
            cell=group,
            raw=statistics.fmean(each.raw for each in members),
            drift=statistics.fmean(each.drift for each in members),
            error=math.hypot(*(each.error for each in members)) / len(members),
            cells=len(members),
        )
        for (group, _), members in groups.items()
        if len(members) > 1
    ]


def judged(changes: Sequence[Change]) -> list[Verdict]:
    """Each change with its noise; see the module. Left out: what has no control in its stratum."""
    number = sum(each.role == OURS for each in changes)
    factor = _NORMAL.inv_cdf(1 - _MISTAKES / 2 / max(number, 1))
    controls: dict[str, list[float]] = defaultdict(list)
    for each in changes:
        if each.role == CONTROL:
            controls[each.stratum].append(each.left * math.sqrt(each.cells))
    scatters = {stratum: scatter(left) for stratum, left in controls.items()}
    return [
        Verdict(each, factor * math.hypot(each.error, scatters[each.stratum] / math.sqrt(each.cells)))
        for each in changes
        if each.stratum in scatters
    ]


def scatter(values: Iterable[float]) -> float:
    """A standard deviation around 0 that fits the tail: the 99 % quantile of the sizes, as of normal numbers.

    Of few values it is the largest, as the quantile that the largest of so many is.

    Example:
        >>> round(scatter([-0.3, 0.1, 0.2]), 4)
        0.2608
    """
    sizes = sorted(map(abs, values))
    rank = min(math.ceil(_TAIL * (len(sizes) + 1)), len(sizes))
    return sizes[rank - 1] / _NORMAL.inv_cdf((1 + rank / (len(sizes) + 1)) / 2)

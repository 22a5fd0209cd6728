"""Fewer cases than a full product: each two values of different axes still meet in one of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any


def pairs(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases for ``pytest.mark.parametrize``, the same ones in each run, about as many as two axes have pairs.

    Give what belongs together, such as an op and its options, as one axis.

    Example:
        >>> pairs("ab", [1, 2], "xy")
        [('a', 1, 'x'), ('a', 2, 'y'), ('b', 1, 'y'), ('b', 2, 'x')]
    """
    sizes = [len(axis) for axis in axes]
    if len(axes) == 1:
        return [(value,) for value in axes[0]]
    # A value is (axis, index). A dict keeps its order, which a set does not.
    missing = {
        ((a, i), (b, j)): None
        for a, b in itertools.combinations(range(len(axes)), 2)
        for i, j in itertools.product(range(sizes[a]), range(sizes[b]))
    }
    uses: Counter[tuple[int, int]] = Counter()
    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for axis in sorted(set(range(len(axes))) - case.keys(), key=lambda axis: -sizes[axis]):
            case[axis] = max(
                range(sizes[axis]),
                key=lambda i, axis=axis: (
                    sum(tuple(sorted([(axis, i), other])) in missing for other in case.items()),
                    -uses[axis, i],
                ),
            )
        values = sorted(case.items())
        uses.update(values)
        for pair in itertools.combinations(values, 2):
            missing.pop(pair, None)
        cases.append(tuple(axes[axis][index] for axis, index in values))
    return cases

"""The cover by pairs that parametrised tests use."""

import itertools

import pytest

from tests._support.pairs import pairs

AXES = [
    (range(3),),
    (range(24), "abc", range(3)),
    (range(3), range(10), range(4), range(2)),
    (range(6), range(4), range(2), range(3)),
    (range(5), range(5), range(5), range(5), range(5)),
    ("a", range(3), "b"),
]


@pytest.mark.parametrize("axes", AXES)
def test_each_two_values_meet_in_few_cases(axes):
    cases = pairs(*axes)
    assert all(value in axis for case in cases for value, axis in zip(case, axes, strict=True))
    for a, b in itertools.combinations(range(len(axes)), 2):
        assert {(case[a], case[b]) for case in cases} == set(itertools.product(axes[a], axes[b]))
    assert len(set(cases)) == len(cases)
    largest = sorted((len(axis) for axis in axes), reverse=True)[:2]
    fewest = largest[0] * largest[1] if len(axes) > 1 else largest[0]
    assert len(cases) <= 1.8 * fewest
    assert cases == pairs(*axes)

"""Some cases and peers under pytest-benchmark: ``pytest benchmarks --benchmark-only``.

No contender is timed whose results or gradients do not pass the gate. ``python -m benchmarks`` has the other
cases, the peers that are compiled and the stricter rules: interleaved rounds, pinned threads, and floors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest

from benchmarks import peers, shapes
from benchmarks.devices import Device
from benchmarks.problems import problem
from benchmarks.results import OK, SKIPPED, UNAVAILABLE
from benchmarks.runner import Entry, Measurement, Problem
from benchmarks.shapes import PASSES, Case, Shape
from benchmarks.timing import QUICK

pytest.importorskip("pytest_benchmark")

_SHAPES = (shapes.QUICK_SHAPES[1], Shape(1, 14, 14, 256, 16))


@lru_cache(maxsize=1)
def _problem(case: Case) -> Problem:
    return problem(case.spec(peers.names("cpu", plain=True)), Device())


@lru_cache(maxsize=1)
def _admitted(case: Case, which: str) -> dict[str, Entry]:
    entries = Measurement(Device(), QUICK).admit(_problem(case), which)
    return {entry.contender.name: entry for entry in entries}


def _parameters() -> Iterator[Any]:
    stack = shapes.QUICK_STACK_SHAPE
    for case in shapes.cases(shapes=_SHAPES, stack=stack, dtypes=["fp32"], layouts=["channels_last"]):
        for which in PASSES:
            for contender in _problem(case).contenders:
                label = f"{case.label} {which} {contender.name}"
                yield pytest.param(case, which, contender.name, id=label.replace(" ", "-"))


@pytest.mark.parametrize(("case", "which", "name"), list(_parameters()))
def test_op(benchmark: Any, case: Case, which: str, name: str) -> None:
    """One contender of one case in one pass: it passes the gate, and is timed."""
    entry = _admitted(case, which)[name]
    if entry.status in (UNAVAILABLE, SKIPPED):
        pytest.skip(entry.reason)
    assert entry.status == OK, entry.reason
    assert entry.call is not None
    benchmark.group = f"{case.label} {which}"
    benchmark.extra_info |= {
        "role": entry.contender.role,
        "error": entry.error,
        "extra_bytes": entry.extra_bytes,
    }
    benchmark(entry.call)

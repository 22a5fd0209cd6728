"""The registry of cases and peers under pytest-benchmark.

``pytest benchmarks --benchmark-only`` times a few small shapes and all contenders that need not be compiled.
With ``VT_FAST_BENCHMARK=registry`` in the environment it times the shapes, dtypes and layouts of ``python -m
benchmarks cpu`` and the compiled peers too, which takes long; ``-k`` chooses by name. No contender is timed
whose results or gradients do not pass the gate. ``python -m benchmarks`` has the stricter rules: interleaved
rounds, pinned threads, and floors.
"""

from __future__ import annotations

import os
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

_EVERYTHING = os.environ.get("VT_FAST_BENCHMARK") == "registry"
_FEW = (shapes.QUICK_SHAPES[1], Shape(1, 14, 14, 256, 16))


@lru_cache(maxsize=1)
def _problem(case: Case) -> Problem:
    return problem(case.spec(peers.names("cpu", plain=not _EVERYTHING)), Device())


@lru_cache(maxsize=1)
def _admitted(case: Case, which: str) -> dict[str, Entry]:
    entries = Measurement(Device(), QUICK).admit(_problem(case), which)
    return {entry.contender.name: entry for entry in entries}


def _parameters() -> Iterator[Any]:
    few = shapes.cases(
        shapes=_FEW, stack=shapes.QUICK_STACK_SHAPE, dtypes=["fp32"], layouts=["channels_last"]
    )
    for case in shapes.cases() if _EVERYTHING else few:
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
        "of": shapes.ORIGINS.get(case.shape, ""),
        "role": entry.contender.role,
        "error": entry.error,
        "extra_bytes": entry.extra_bytes,
    }
    benchmark(entry.call)

"""The registry of cases and peers under pytest-benchmark.

``pytest benchmarks --benchmark-only`` times a few small shapes and everybody who need not be compiled. With
``VT_FAST_BENCHMARK=registry`` in the environment it times the shapes, dtypes and layouts of ``python -m
benchmarks cpu`` and the compiled peers too, which takes long; ``-k`` chooses by name. Nobody is timed whose
results or gradients do not pass the gate, which all contenders of a case do together, before the first of
them is timed. ``python -m benchmarks`` has the stricter rules: everybody in turn, pinned, with the ceilings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest

from benchmarks import cases, origins, records
from benchmarks.admission import Admission, admit
from benchmarks.cases import Case, Shape
from benchmarks.ceilings import Ceilings
from benchmarks.device import Device
from benchmarks.limits import Compiling
from benchmarks.peers import NAMES
from benchmarks.peers_gpu import PLAIN_NAMES
from benchmarks.trial import Trial, pose, who

pytest.importorskip("pytest_benchmark")

_EVERYTHING = os.environ.get("VT_FAST_BENCHMARK") == "registry"
_FEW = (cases.QUICK_SHAPES[1], Shape(1, 14, 14, 256, 16))
_PEERS = list(NAMES) if _EVERYTHING else [name for name in PLAIN_NAMES if name in NAMES]


def _cases() -> Iterator[Case]:
    if _EVERYTHING:
        yield from cases.select(cases.SHAPES, cases.STACK_SHAPE)
    else:
        yield from cases.select(_FEW, cases.QUICK_STACK_SHAPE, dtypes=["fp32"], layouts=["channels_last"])


def _parameters() -> Iterator[Any]:
    for case in _cases():
        for which in cases.PASSES:
            for contender in who(case, _PEERS, Device()):
                if contender.timed:
                    label = f"{case.label} {which} {contender.name}"
                    yield pytest.param(case, which, contender.name, id=label.replace(" ", "-"))


@lru_cache(maxsize=1)
def _trial(case: Case) -> Trial:
    return Trial(case, pose(case), _PEERS)


@lru_cache(maxsize=1)
def _admission(case: Case, which: str) -> Admission:
    return admit(_trial(case), which, Ceilings(case.dtype, quick=True).measure(), None, Compiling())


@pytest.mark.parametrize(("case", "which", "name"), list(_parameters()))
def test_op(benchmark: Any, case: Case, which: str, name: str) -> None:
    """One contender of one case in one pass: it passes the gate, and is timed."""
    admission = _admission(case, which)
    entry = next(entry for entry in admission.entries if entry.name == name)
    if entry.status in (records.UNAVAILABLE, records.SKIPPED):
        pytest.skip(str(entry.reason))
    assert entry.status == records.OK, entry.reason
    benchmark.group = f"{case.label} {which}"
    benchmark.extra_info |= {
        "of": origins.origin(case.shape),
        "kind": entry.kind,
        "errors": entry.errors,
        "allowed": entry.allowed,
        "extra_bytes": entry.extra_bytes,
    }
    benchmark(admission.calls[name])

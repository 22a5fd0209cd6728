"""One case on tiny shapes: which entries pass the accuracy gate, and memory."""

import math
import shutil

import pytest
import torch

from benchmarks import admission, cases, ceilings, gate, measuring, peers, records, report, timing, truth
from benchmarks.contenders import Contender
from benchmarks.trial import Trial, pose
from tests._support import standin

SHAPE = cases.Shape(2, 4, 5, 16, 4)


def trial(op="project", dtype="fp32", layout="nchw", wanted=("folded",)):
    case = cases.Case(op, SHAPE, dtype, layout)
    return Trial(case, pose(case), wanted)


def cells(some_trial, passes=cases.PASSES):
    tops = ceilings.Ceilings(some_trial.case.dtype, quick=True)
    return list(measuring.measure(some_trial, passes, tops, timing.QUICK))


def entry_of(cell, name):
    return next(entry for entry in cell.entries if entry.name == name)


def off_by(factor, in_backward=False):
    class Slip(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * factor

    def wrong(x, keys, values):
        (y,) = peers.project_folded(Slip.apply(x) if in_backward else x, keys, values)
        return (y if in_backward else y * factor,)

    return wrong


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("kind", [records.OURS, records.PEER])
def test_gate_refuses_a_wrong_contender(kind, in_backward):
    some = trial()
    names = ("x", "keys", "values")
    some.contenders.append(Contender("slip", kind, off_by(1.001, in_backward), names))
    forward, both = cells(some)
    if not in_backward:
        assert entry_of(forward, "slip").status == records.WRONG
    entry = entry_of(both, "slip")
    assert entry.status == records.WRONG
    assert entry.seconds == []
    assert not entry.timed
    assert ("dx" if in_backward else "map") in entry.reason
    assert "wrong" in report.render(records.Run(standin.MACHINE, {}, [both]))
    assert entry_of(both, "folded").timed


def test_gate_refuses_nan_shapes_and_forgotten_pixels():
    def not_a_number(x, keys, values):
        (y,) = peers.project_folded(x, keys, values)
        return (torch.where(torch.arange(y.shape[3]) == 1, torch.nan, y),)

    def short(x, keys, values):
        return (peers.project_folded(x, keys, values)[0][:, :, :-1],)

    some = trial()
    for function in (not_a_number, short):
        some.contenders.append(Contender(function.__name__, records.PEER, function, ("x", "keys", "values")))
    (cell,) = cells(some, [cases.FORWARD])
    for name in ("not_a_number", "short"):
        assert entry_of(cell, name).status == records.WRONG
        assert entry_of(cell, name).errors["map"] == math.inf


def test_a_wrong_yardstick_is_no_yardstick(monkeypatch):
    some = trial()
    index = next(i for i, c in enumerate(some.contenders) if c.name == "folded")
    some.contenders[index] = some.contenders[index]._replace(function=off_by(1.1))
    with pytest.raises(RuntimeError, match="the yardstick is wrong"):
        cells(some)


def test_a_yardstick_that_has_lost_its_digits_in_long_sums_measures_nobody():
    values = {"tokens": torch.ones(1, 4, 16, dtype=torch.float64), "dx": torch.ones(1, 2, 16)}
    exact = truth.Truth(values, 0.0)
    long, short = (
        cases.Case("tokenize", cases.Shape(1, side, side, 16, 4), "fp32", "nchw") for side in (2048, 8)
    )
    assert gate.Gate.make(long, exact, {"tokens": 1e-4}).yardstick == {"tokens": 1e-4}
    for name in values:
        found = gate.Gate.make(long, exact, {name: 1e-3})
        assert found.yardstick == {"tokens": 0.0, "dx": 0.0}
    (allowed,) = found.allowed(["tokens"], gate.PEERS).values()
    assert "off by" in gate.complaint({"tokens": 1e-3}, {"tokens": allowed})
    assert gate.complaint({"tokens": 1e-6}, {"tokens": allowed}) is None
    with pytest.raises(RuntimeError, match="the yardstick is wrong"):
        gate.Gate.make(short, exact, {"tokens": 1e-3})


def test_one_that_fails_or_cannot_be_compiled_says_so():
    def fails(x, keys, values):
        raise ZeroDivisionError("on purpose\nand more")

    some = trial()
    names = ("x", "keys", "values")
    some.contenders += [
        Contender("fails", records.PEER, fails, names),
        Contender("compile fails", records.PEER, fails, names, compiled=True),
    ]
    (cell,) = cells(some, [cases.FORWARD])
    assert entry_of(cell, "fails").status == records.FAILED
    assert entry_of(cell, "compile fails").status == records.UNAVAILABLE
    assert entry_of(cell, "fails").reason == "ZeroDivisionError: on purpose"
    assert "ZeroDivisionError: on purpose" in report.render(records.Run(standin.MACHINE, {}, [cell]))


def test_hopeless_products_are_skipped_with_a_reason(monkeypatch):
    monkeypatch.setattr(admission, "_TOO_LONG_SECONDS", 0.0)
    monkeypatch.setattr(admission, "_TOO_MANY_FLOORS", 1e-6)
    (cell,) = cells(trial(wanted=("eager", "folded")), [cases.FORWARD])
    entry = entry_of(cell, "eager")
    assert (entry.status, entry.seconds) == (records.SKIPPED, [])
    assert "matrix products alone" in entry.reason


def test_extra_memory_is_above_results():
    some = trial("project", wanted=())

    def copies(x, keys, values):
        extra = x.clone()
        return (peers.project_folded(x, keys, values)[0] + 0 * extra,)

    some.contenders.append(Contender("copies", records.PEER, copies, ("x", "keys", "values")))
    (cell,) = cells(some, [cases.FORWARD])
    assert cell.map_bytes == 2 * 20 * 16 * 4
    assert entry_of(cell, "copies").extra_bytes >= 2 * cell.map_bytes


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.slow
def test_compiled_peers_take_part():
    for cell in cells(trial(wanted=("compile folded",))):
        assert entry_of(cell, "compile folded").timed

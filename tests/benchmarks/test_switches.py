"""The switches' rows: all sides compute the same, and a wrong one gets no time."""

import pytest

from benchmarks import switches
from benchmarks.devices import Device
from benchmarks.results import OK, OURS, WRONG
from benchmarks.roofline import Work
from benchmarks.shapes import BOTH, FORWARD, PASSES
from tests._support.measuring import measured, plans, reported

NAMES = list(switches.switches(quick=True))
OTHERS = ("no switch",)


def problem(name, dtype, passes=PASSES):
    peers = [*switches.PEERS]
    spec = {"switch": name, "quick": True, "dtype": dtype, "peers": peers, "passes": passes}
    return switches.problem(spec, Device())


@pytest.mark.parametrize("name", NAMES)
def test_all_sides_of_a_switch_compute_the_same(name):
    found = problem(name, "fp64")
    names = [contender.name for contender in found.contenders]
    assert names[0] == "plain"
    assert "vt_fast" in names
    for which in found.passes:
        exact = found.call(found.contenders[0], which)()
        for contender in found.contenders[1:]:
            values = found.call(contender, which)()
            if contender.name not in OTHERS:
                for value, expected in zip(values, exact, strict=True):
                    error = (value - expected).norm()
                    assert error <= 1e-12 * max(expected.norm(), 1.0), (contender, which)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_switches_pass_their_gate(name, dtype):
    for row in measured(problem(name, dtype)).values():
        assert row.status == OK, row


@pytest.mark.parametrize("name", ["slots", "bags"])
def test_a_wrong_switch_gets_no_time(monkeypatch, name):
    real = switches.tokenize

    def wrong(*operands, **options):
        found = real(*operands, **options)
        return (1.001 * found[0], found[1]) if isinstance(found, tuple) else 1.001 * found

    monkeypatch.setattr(switches, "tokenize", wrong)
    found = measured(problem(name, "fp32"))
    assert {name for name, _ in found if found[name, FORWARD].status == WRONG} == {"vt_fast"}


def test_floors_count_what_a_switch_reads():
    rows = switches.switches()
    size = 8 * 4096 * 256

    def work(name, which):
        return rows[name][1].work(which, 2)

    # Two maps are pooled; a residual is read, and its gradient is the one that arrives.
    assert work("values", BOTH) == [
        Work(4 * size, 0, 4 * 56 * size),
        Work(4 * size, 4 * size, 8 * 56 * size),
    ]
    assert work("sums", BOTH) == [
        Work(4 * size, 2 * size, 4 * 56 * size),
        Work(4 * size, 2 * size, 8 * 56 * size),
    ]
    # Scores of 19 classes in place of a product.
    size = 128 * 256
    assert work("scores", FORWARD) == [Work(2 * (512 + 19) * size, 0, 2 * 19 * 512 * size)]
    assert len(work("linear", BOTH)) == 4


def test_the_mode_in_a_child_process():
    (plan,) = plans("switches --switch slots --dtype fp32 --quick --threads 1")
    found = reported(plan)
    assert [row.role for row in found].count(OURS) == 2
    assert {(row.mode, row.status, row.floor is not None) for row in found} == {("switches", OK, True)}

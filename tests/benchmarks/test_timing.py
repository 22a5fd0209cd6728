"""The rules of timing, with functions that take as long as they say."""

import time

import pytest

from benchmarks.devices import Device
from benchmarks.timing import QUICK, Budget, Limits, interleaved


def rounds(seconds, budget, **options):
    """How often each function was timed, and their order."""
    order = []

    def clock(function):
        name, taken = function()
        order.append(name)
        return taken

    functions = {name: lambda name=name, taken=taken: (name, taken) for name, taken in seconds.items()}
    found = interleaved(functions, budget, clock=clock, **options)
    return {name: len(values) for name, values in found.items()}, order


def test_contenders_take_turns_in_another_order_each_round():
    counts, order = rounds({"a": 0.01, "b": 0.01, "c": 0.01}, Budget(seconds=0.25))
    assert counts == {"a": 9, "b": 9, "c": 9}
    turns = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1


STAY = {"stay": ["ours"]}


@pytest.mark.parametrize(
    ("seconds", "budget", "options", "counts"),
    [
        ({"a": 1e-6}, Budget(), {}, [200]),
        ({"a": 1.0, "b": 9.0}, QUICK, {}, [3, 1]),
        # peers far behind leave; ours stays, and none leaves because of ours
        ({"ours": 0.01, "a": 0.002, "b": 0.0052}, Budget(), STAY, [20, 20, 3]),
        ({"ours": 0.001, "b": 0.02}, Budget(), STAY, [12, 12]),
        # in a slow cell after one round, by the best call, the one before the rounds included
        ({"ours": 2.0, "a": 2.0, "b": 3.1}, Budget(), STAY, [3, 3, 1]),
        ({"a": 2.0, "b": 3.1}, Budget(), {"before": {"b": 2.1}}, [3, 3]),
        # or not at all, where that call was hopeless; ours is timed in any case
        ({"ours": 9.0, "a": 2.0, "b": 8.1}, Budget(), STAY | {"before": {"a": 2.0, "b": 8.1}}, [3, 3, 1]),
        ({"a": 0.002, "b": 0.0081}, Budget(), {"before": {"a": 0.002, "b": 0.0081}}, [113, 3]),
    ],
)
def test_rounds(seconds, budget, options, counts):
    assert [*rounds(seconds, budget, **options)[0].values()] == counts


def test_short_calls_are_timed_many_at_a_time():
    calls = []

    def call():
        calls.append(time.sleep(0.001))

    assert Device(repeat=20).clock(call) >= 0.001
    assert len(calls) == 21  # one before


def test_no_compilation_begins_that_would_not_end_in_time():
    now = [0.0]
    limits = Limits(100.0, now=lambda: now[0])
    assert limits.refusal() is None
    with limits.compiling():
        now[0] = 60.0
    assert limits.remaining == 40.0
    assert limits.refusal() == "not compiled: 40 s are left, and one took 60 s"
    now[0] = 200.0
    assert limits.remaining == 0.0


def test_a_compilation_that_takes_too_long_is_given_up():
    def sleeps():
        try:
            time.sleep(20)
        except Exception:  # as a compiler may catch everything
            return

    start = time.monotonic()
    with pytest.raises(TimeoutError, match="given up after 0 s"), Limits(None, 0.05).compiling():
        sleeps()
    assert time.monotonic() - start < 10

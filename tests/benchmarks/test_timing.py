"""Rounds of timing, on clocks that tell what they are told to."""

from benchmarks import timing


def test_rounds_follow_the_budget():
    budget = timing.Budget(seconds=0.0, least=4, most=9)
    names = "abc"
    assert set(map(len, timing.interleaved(dict.fromkeys(names, int), budget).values())) == {4}
    endless = budget._replace(seconds=1e9)
    assert set(map(len, timing.interleaved(dict.fromkeys(names, int), endless).values())) == {9}


def test_who_is_far_behind_leaves_but_ours_stays():
    fixed = {"ours": 9.0, "best": 0.1, "near": 0.12, "far": 0.3}
    functions = {name: (lambda name=name: name) for name in fixed}
    budget = timing.Budget(seconds=0.0, least=6, patience=1e9)
    seconds = timing.interleaved(functions, budget, stay={"ours"}, clock=lambda call: fixed[call()])
    assert {n: len(v) for n, v in seconds.items()} == {"ours": 6, "best": 6, "near": 6, "far": 3}


def test_slow_cells_get_few_rounds_and_drop_early():
    fixed = {"ours": 3.0, "best": 2.0, "behind": 4.0, "unlucky": 4.0}
    functions = {name: (lambda name=name: name) for name in fixed}
    before = {"unlucky": 2.1}  # its first call in the rounds was slow by chance
    seconds = timing.interleaved(
        functions, timing.Budget(), before=before, stay={"ours"}, clock=lambda call: fixed[call()]
    )
    assert {n: len(v) for n, v in seconds.items()} == {"ours": 3, "best": 3, "behind": 1, "unlucky": 3}


def test_order_changes_from_round_to_round():
    calls = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "abcd"}
    timing.interleaved(functions, timing.Budget(seconds=0.0, least=8, few=8))
    rounds = [tuple(calls[i : i + 4]) for i in range(0, 32, 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 3

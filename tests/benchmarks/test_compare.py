"""Comparing two runs, with times drawn from seeds: what is reported, and what is not."""

import itertools
import math
import random
from copy import deepcopy

import msgspec
import pytest

pytest.importorskip("pandas")

from benchmarks import compare, results
from benchmarks.results import BACKEND, PEER, Row, Run

FACTS = {
    "machine": {
        "devices": {"cpu": "some", "cores": "2", "instructions": "AVX512"},
        "versions": {"torch": "2", "vt_fast": "0"},
    },
    "settings": {"quick": False},
    "commit": None,
    "complete": True,
    "problems": [],
}
OPS, PIXELS, PASSES = ("tokenize", "project"), (4, 16, 64, 256, 1024), ("forward", "forward+backward")
CONTENDERS = {"vt_fast cpu": BACKEND, "eager": PEER, "folded": PEER, "sdpa": PEER, "compile folded": PEER}
SLOW = "project 1x64x16x8 fp32 nchw forward, 1 thread"


def drawn(seed, drift=1.0, slow="nothing", factor=1.0, contenders=CONTENDERS, **fields):
    """A run of one process: its medians are 3 % off. ``slow``: the start of the labels of our slower rows."""
    dice, rows = random.Random(seed), []
    for op, pixels, which in itertools.product(OPS, PIXELS, PASSES):
        cell = {"mode": "ops", "case": op, "shape": f"1x{pixels}x16x8", "dtype": "fp32", "layout": "nchw"}
        for name, role in contenders.items():
            row = Row(**cell | {"which": which, "threads": 1} | fields, contender=name, role=role, median=1.0)
            median = 1e-3 * drift * math.exp(dice.gauss(0, 0.03))
            median *= factor if role == BACKEND and row.label.startswith(slow) else 1.0
            times = {"median": median, "low": 0.99 * median, "high": 1.02 * median, "rounds": 9}
            rows.append(msgspec.structs.replace(row, **times))
    return Run(deepcopy(FACTS), rows)


def changed(run, number, **fields):
    run.rows[number] = msgspec.structs.replace(run.rows[number], **fields)


def reported(found):
    return list(found.ours(compare.SLOWER).cell)


def test_runs_of_the_same_code_agree_whatever_the_machine_does():
    wrong = sum(compare.compare(drawn(1000 + n, 1 + n / 50), drawn(n)).status for n in range(40))
    assert wrong <= 3
    same = compare.compare(drawn(1), drawn(1))
    assert {*same.changes.left} == {0.0}
    assert same.status == 0


def test_a_slower_kernel_is_reported_and_nothing_else():
    new, old = drawn(1, 0.8, SLOW, 1.5), drawn(2)
    found = compare.compare(new, old)
    assert reported(found) == [SLOW]
    assert found.status == 1
    change = found.ours(compare.SLOWER).iloc[0]
    assert math.exp(change.left) == pytest.approx(1.5, rel=0.15)
    assert math.exp(change.drift) == pytest.approx(0.8, rel=0.1)
    assert SLOW in compare.render(found).partition("REGRESSIONS:")[2]
    back = compare.compare(old, new)
    assert back.status == 0
    assert SLOW in compare.render(back).partition("Faster:")[2]


def test_a_little_slower_everywhere_is_seen_in_the_mean():
    found = compare.compare(drawn(3, slow="tokenize", factor=1.09), drawn(53))
    expected = ["tokenize forward+backward, fp32, 1 thread", "tokenize forward, fp32, 1 thread"]
    assert sorted(reported(found)) == expected
    assert "mean of 5 cells" in compare.render(found)


def test_scattered_times_make_noise():
    new, old = drawn(1, slow=SLOW, factor=1.5), drawn(2)
    for run in (new, old):
        for number, row in enumerate(run.rows):
            if row.role == BACKEND:
                changed(run, number, low=0.5 * row.median, high=2 * row.median)
    assert compare.compare(new, old).status == 0


def test_lost_times_and_more_memory_are_reported():
    new, old = drawn(1), drawn(2)
    changed(new, 0, median=None, status="wrong", reason="map is off by 1")
    del new.rows[5]
    changed(new, 11, median=None, status="failed", reason="a peer's")
    for run, sizes in ((old, (10 << 20, 1000)), (new, (11 << 20, 50_000))):
        for number, size in zip((9, 14), sizes, strict=True):  # 5 is gone from the new one
            changed(run, number + (run is old), extra_bytes=size)
    found = compare.compare(new, old)
    assert (reported(found), found.status) == ([], 1)
    text = compare.render(found)
    label = "tokenize 1x{}x16x8 fp32 nchw {}, 1 thread, vt_fast cpu: {}"
    assert text.partition("MORE MEMORY:\n  ")[2].splitlines() == [
        label.format(16, "forward", "10.5 MB -> 11.5 MB"),
        "",
        "WITHOUT A TIME NOW:",
        "  " + label.format(4, "forward", "wrong: map is off by 1"),
        "  " + label.format(4, "forward+backward", "it took no part"),
    ]


def test_cells_of_one_run_alone_are_counted_and_left_out():
    new, old = drawn(1), drawn(2)
    new.rows = new.rows[:50]
    for number in range(5):
        changed(new, number, threads=2)
    assert compare.compare(new, old).cells == (9, 1, 11)
    with pytest.raises(
        ValueError, match=r"must share a cell, NEW has 20 such as tokenize .* bf16 .* and OLD 20"
    ):
        compare.compare(drawn(1, dtype="bf16"), old)
    with pytest.raises(ValueError, match="1 thread: a peer must have times in both"):
        compare.compare(new, drawn(2, contenders={"vt_fast cpu": BACKEND}))
    old.rows.append(old.rows[0])
    with pytest.raises(ValueError, match="a run must have a row once, vt_fast cpu is there twice"):
        compare.compare(new, old)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("machine", "devices", "cpu"), "CPU: other and some"),
        (("machine", "gpu"), "GPU: other and None"),
        (("machine", "versions", "torch"), "torch: other and 2"),
        (("settings", "quick"), "--quick: other and False"),
    ],
)
def test_other_machines_and_settings_are_refused_unless_forced(path, message):
    new, old = drawn(1), drawn(2)
    place = new.facts
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = {"name": "other"} if path[-1] == "gpu" else "other"
    with pytest.raises(ValueError, match=message):
        compare.compare(new, old)
    found = compare.compare(new, old, force=True)
    assert f"Forced: NEW and OLD differ in {message}." in compare.render(found)


def test_files_are_compared_and_the_answer_is_always_the_same(tmp_path, capsys):
    paths = [tmp_path / name for name in ("new.csv", "old.csv")]
    for path, run in zip(paths, (drawn(1, slow=SLOW, factor=1.5), drawn(2)), strict=True):
        results.save(run, path)
    texts = set()
    for _ in range(2):
        assert compare.main(*paths, force=False, everything=True) == 1
        texts.add(capsys.readouterr().out)
    (text,) = texts
    assert text.count("compile folded") == 20
    assert "nan" not in text.lower()

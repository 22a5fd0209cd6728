"""Comparing two runs, on times drawn at random with seeds: what is named, and what is not."""

import json
import math

import pytest

from benchmarks import cases, noise, records
from benchmarks.compare_report import render
from benchmarks.comparison import compare
from benchmarks.figures import CEILING, CONTROL, OURS, figures
from benchmarks.networks.sides import CONVOLUTIONAL, REFERENCE
from benchmarks.noise import SLOWER, Change
from tests._support import standin
from tests._support.drawn_runs import SHAPES, Machine, network_run, one_cell_slower


def named(found):
    return [verdict.change.cell for verdict in found.regressions]


def test_two_runs_of_the_same_code_agree_whatever_the_machine_does():
    wrongly = 0
    for seed in range(40):
        old, new = Machine(seed).run(), Machine(1000 + seed, drift=1 + seed / 100).run()
        found = compare(new, old)
        assert found.cells == 30
        assert found.lost == []
        wrongly += found.status
    assert wrongly <= 3


def test_a_slower_kernel_is_named_and_nobody_else():
    found = compare(Machine(1, drift=0.8).run(one_cell_slower(1.5)), Machine(2).run())
    cell = "project 1x64x16x8 fp32 nchw forward+backward, 1 thr."
    assert named(found) == [cell]
    assert found.status == 1
    (verdict,) = found.regressions
    assert math.exp(verdict.change.left) == pytest.approx(1.5, rel=0.15)
    assert math.exp(verdict.change.drift) == pytest.approx(0.8, rel=0.1)
    text = render(found)
    assert f"REGRESSIONS:\n  {cell}, vt_fast cpu: 1." in text
    assert "1 are slower and 0 faster by more than noise" in text
    back = compare(Machine(2).run(), Machine(1, drift=0.8).run(one_cell_slower(1.5)))
    assert back.status == 0
    assert f"Faster:\n  {cell}" in render(back)


def test_a_little_slower_everywhere_is_seen_in_the_mean():
    found = compare(Machine(1).run(lambda op, *_: 1.09 if op == "tokenize" else 1.0), Machine(2).run())
    assert sorted(named(found)) == [
        "tokenize forward+backward, fp32, 1 thread(s)",
        "tokenize forward, fp32, 1 thread(s)",
    ]
    assert "mean of 5 cells" in render(found)


def test_raw_times_that_are_scattered_make_noise():
    def noisy(run):
        for cell in run.cells:
            cell.ours.seconds = [each * factor for each in cell.ours.seconds[:5] for factor in (0.5, 2.0)]
        return run

    slow = one_cell_slower(1.5)
    assert compare(Machine(1).run(slow), Machine(2).run()).status == 1
    assert compare(noisy(Machine(1).run(slow)), noisy(Machine(2).run())).status == 0


def test_a_figure_that_is_gone_is_named():
    old, new = Machine(1).run(), Machine(2).run()
    ours = new.cells[0].ours
    ours.seconds, ours.status, ours.reason = [], records.WRONG, "map is off by 1"
    new.cells[1].entries.remove(new.cells[1].ours)
    new.cells[2].entries[1] = records.Entry("eager", records.PEER, records.FAILED, "a peer's own trouble")
    found = compare(new, old)
    assert [(lost.name, lost.why) for lost in found.lost] == [
        ("vt_fast cpu", "wrong: map is off by 1"),
        ("vt_fast cpu", "it took no part"),
    ]
    assert found.status == 1
    assert found.regressions == []
    assert (
        "WITHOUT A FIGURE NOW:\n  tokenize 1x4x16x8 fp32 nchw forward, 1 thr., vt_fast cpu: wrong"
        in render(found)
    )


def test_more_memory_is_named():
    old, new = Machine(1).run(), Machine(2).run()
    for run, sizes in ((old, (10 << 20, 10 << 20, 1000, 10 << 20)), (new, (11 << 20, 5 << 20, 50_000, None))):
        for cell, size in zip(run.cells, sizes, strict=False):
            cell.ours.extra_bytes = size
            cell.entries[1].extra_bytes = (size or 0) ** 2  # a peer's
    found = compare(new, old)
    assert [(each.old, each.new) for each in found.grown] == [(10 << 20, 11 << 20)]
    assert found.status == 1
    assert "MORE MEMORY:\n  tokenize 1x4x16x8 fp32 nchw forward, 1 thr., vt_fast cpu: 10.5 MB -> 11.5 MB" in (
        render(found)
    )


def test_first_calls_are_compared():
    def run(seed, ours):
        machine = Machine(seed)
        calls = [
            records.FirstCall(
                name, "tokenize", SHAPES[0], "fp32", cold, first=machine.seconds(factor, 1 if cold else 5)
            )
            for name, factor in (("vt_fast cpu", ours), ("eager", 1), ("sdpa", 1), ("compile eager", 9))
            for cold in (False, True)
        ]
        found = machine.run()
        found.first_calls = calls
        return found

    assert named(compare(run(1, 1.0), run(2, 1.0))) == []
    (label,) = named(compare(run(1, 2.0), run(2, 1.0)))
    assert label == "first call, tokenize 1x4x16x8 fp32, caches warm"


def test_parts_are_told_apart():
    old, new = Machine(1).run(), Machine(2).run()
    for run in (old, new):
        for number, cell in enumerate(run.cells[:2]):
            cell.op, cell.which, cell.parts = "tokenize", cases.FORWARD, number + 1
            cell.shape = SHAPES[0]
    assert {figure.cell for figure in figures(new).values()} >= {
        "tokenize 1x4x16x8 in 1 chunks fp32 nchw forward, 1 thr.",
        "tokenize 1x4x16x8 in 2 chunks fp32 nchw forward, 1 thr.",
    }
    assert compare(new, old).cells == 30


def test_cells_of_one_file_alone_are_counted_and_left_out():
    old, new = Machine(1).run(), Machine(2).run()
    new.cells = new.cells[:10]
    new.cells[0].threads = 2
    found = compare(new, old)
    assert (found.cells, found.alone) == (9, (1, 21))
    assert "9 cells are in both, 1 in NEW alone, 21 in OLD alone." in render(found)
    for cell in new.cells:
        cell.dtype = "bf16"
    with pytest.raises(ValueError, match=r"no cell is in both: NEW has 10 such as tokenize .* bf16"):
        compare(new, old)


def test_the_same_files_give_the_same_answer():
    old, new = Machine(1).run(), Machine(2).run(one_cell_slower(1.5))
    text = render(compare(new, old), everything=True)
    assert render(compare(new, old), everything=True) == text
    assert text.count("compile folded") == 30
    assert "NaN" not in text


def test_an_old_file_against_itself():
    run = Machine(1).run()
    found = compare(run, run)
    assert found.status == 0
    assert {verdict.change.left for verdict in found.verdicts} == {0.0}


def test_where_there_is_no_peer_the_ceilings_tell_the_drift():
    def without(seed, drift=1.0, slow=lambda *_: 1.0):
        return Machine(seed, drift).run(slow, peers=())

    assert {figure.role for figure in figures(without(1)).values()} == {OURS, CEILING}
    assert compare(without(1, 1.5), without(2)).status == 0
    assert named(compare(without(1, 1.5, one_cell_slower(2.0)), without(2))) == [
        "project 1x64x16x8 fp32 nchw forward+backward, 1 thr."
    ]
    old, new = without(1), without(2)
    for cell in (*old.cells, *new.cells):
        cell.floor = None
    with pytest.raises(ValueError, match=r"1 thread\(s\): no peer and no ceiling"):
        compare(new, old)


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("devices", "cpu", "CPU: other and none"),
        ("devices", "instructions", "instruction set: other and none"),
        ("versions", "torch", "torch: other and 2"),
    ],
)
def test_another_machine_is_refused_unless_forced(part, name, message):
    other = standin.MACHINE | {part: standin.MACHINE[part] | {name: "other"}}
    old, new = Machine(1).run(), Machine(2).run(about=other)
    with pytest.raises(ValueError, match=message):
        compare(new, old)
    found = compare(new, old, force=True)
    assert found.forced == [message]
    assert f"Forced: NEW and OLD differ in {message}." in render(found)


def test_other_settings_and_other_kinds_are_refused():
    old, new = Machine(1).run(), Machine(2).run()
    new.settings = standin.CPU_SETTINGS | {"quick": True}
    with pytest.raises(ValueError, match="--quick: True and False"):
        compare(new, old)
    for other in (Machine(3).run(on_gpu=True), network_run(1)):
        with pytest.raises(ValueError, match="with their like"):
            compare(other, old, force=True)


def test_on_a_gpu_plain_calls_are_compared_too():
    def slower(run):
        for cell in run.cells:
            cell.ours.eager_seconds = [1.5 * each for each in cell.ours.eager_seconds]
        return run

    old = Machine(1).run(on_gpu=True)
    found = compare(slower(Machine(2).run(on_gpu=True)), old)
    singles = [verdict.change.name for verdict in found.verdicts if verdict.word == SLOWER]
    assert set(singles) == {"vt_fast cpu, plain call"}
    assert len(singles) > 20


def test_what_can_no_longer_be_captured_has_lost_a_figure():
    old, new = Machine(1).run(on_gpu=True), Machine(2).run(on_gpu=True)
    ours = new.cells[0].ours
    ours.timed_as, ours.note = records.EAGER, "timed as a plain call, as it cannot be captured: why"
    found = compare(new, old)
    assert [(lost.name, lost.why) for lost in found.lost] == [("vt_fast cpu", ours.note)]
    assert (found.lost[0].cell, "vt_fast cpu, plain call") in found.pairs


def test_sides_that_nobody_asked_for_are_not_lost():
    old, new = network_run(1), network_run(2, sides=(CONVOLUTIONAL, REFERENCE))
    assert len(compare(new, old).lost) == 5
    new.settings["sides"] = [CONVOLUTIONAL, REFERENCE]
    assert compare(new, old).lost == []


def test_figures_have_names_of_their_own():
    run = Machine(1).run(on_gpu=True)
    found = figures(run)
    # graphs and plain calls of five, and a ceiling
    assert len(found) == 30 * (2 * 5 + 1)
    assert {figure.role for figure in found.values()} == {OURS, CONTROL, CEILING}
    run.cells.append(run.cells[0])
    with pytest.raises(ValueError, match="must be in a run once, and vt_fast cpu is there twice"):
        figures(run)


def test_a_peer_is_held_against_the_others():
    def peer(cell, name, raw):
        return Change(cell, "g", "s", name, CONTROL, raw, 0.0, 0.0)

    changes = [peer("a", "p", 0.1), peer("a", "q", 0.3), peer("a", "r", 0.2), peer("b", "p", 0.5)]
    changes.append(Change("b", "g", "s", "ours", OURS, 0.4, 0.0, 0.0))
    left = {(each.cell, each.name): round(each.left, 6) for each in noise.without_drift(changes)}
    # alone in its cell, p of b is held against the median of all
    assert left == {
        ("a", "p"): -0.15,
        ("a", "q"): 0.15,
        ("a", "r"): 0.0,
        ("b", "p"): 0.25,
        ("b", "ours"): -0.1,
    }
    assert json.dumps(noise.scatter([0.0])) == "0.0"

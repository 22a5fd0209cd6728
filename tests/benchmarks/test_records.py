"""Records of a run: the numbers of a cell, marks, entries without times, JSON."""

import dataclasses
import json

import pytest

from benchmarks import cases, records, report, summary
from tests._support import standin

SHAPE = cases.Shape(2, 4, 5, 16, 4)


def _cell(op="project", ours=1.0, peer=2.0, which=cases.BOTH, dtype="fp32"):
    floor = records.Floor(2, 10, 100, [1.0, 3.0, 2.0], 10, [4.0])  # 50 bytes/s, 2.5 FLOPs/s
    entries = [
        records.Entry("vt_fast cpu", records.OURS, seconds=[ours, 9.0, ours / 2], extra_bytes=10),
        records.Entry("eager", records.PEER, seconds=[peer], extra_bytes=100, errors={"map": 1e-7}),
        records.Entry("sdpa", records.PEER, records.WRONG, "map is off", seconds=[]),
    ]
    has_floor = None if op == cases.STACK else floor
    return records.Cell(op, SHAPE, dtype, "nchw", 1, which, 200, has_floor, entries)


def test_figures_of_a_cell():
    cell = _cell()
    assert cell.ours.median == 1.0
    assert cell.floor.terms(cell.map_bytes) == {"bytes": 8.0, "flops": 4.0}
    assert (cell.floor_seconds, cell.bound, cell.over_floor) == (8.0, "bytes", 0.125)
    assert (cell.best_peer.name, cell.best_ratio) == ("eager", 2.0)


def test_marks_can_be_missed_and_met():
    good = records.Run(standin.MACHINE, {}, [_cell(), _cell(cases.STACK, peer=3.5)])
    assert [mark.met for mark in summary.marks(good)] == [True, None, True, True]
    bad = records.Run(standin.MACHINE, {}, [_cell(ours=40.0), _cell(cases.STACK, peer=2.5)])
    assert [mark.met for mark in summary.marks(bad)] == [False, None, False, False]
    assert summary.over_floor(bad) == [bad.cells[0]]
    text = report.render(bad)
    assert "NOT met: fp32" in text
    assert "2.50x in 10%" in text
    assert summary.geometric_mean(summary.ratios([_cell(), _cell(peer=8.0)])) == pytest.approx(4)


def test_nobody_without_a_figure_goes_unnamed():
    cell = _cell()
    cell.entries += [
        records.Entry("folded", records.PEER, records.SKIPPED, "needs about 9 GB", needs_bytes=9_000_000_000),
        records.Entry("transposed", records.PEER, records.FAILED, "on purpose", needs_bytes=1),
        records.Entry("lost", records.PEER, note="could neither be captured nor be called"),
    ]
    assert [entry.too_large for entry in cell.entries] == [None, None, None, 9_000_000_000, None, None]
    text = report.render(records.Run(standin.MACHINE, {}, [cell]))
    for words in (
        "sdpa, wrong in 1 cells, first project 2x20x16x4 fp32 nchw forward+backward, 1 thr.: map is off",
        "folded, skipped in 1 cells, ",
        "transposed, failed in 1 cells, ",
        "forward+backward, 1 thr.: could neither be captured nor be called",
    ):
        assert words in text


def test_json_round_trip(tmp_path):
    run = records.Run(standin.MACHINE, standin.CPU_SETTINGS, [_cell(), _cell(cases.STACK)], ["a problem"])
    records.save(run, tmp_path / "deep" / "run.json")
    assert records.load(tmp_path / "deep" / "run.json") == run
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.json"]
    data = dataclasses.asdict(run) | {"schema": 0}
    (tmp_path / "old.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="schema 1, got 0"):
        records.load(tmp_path / "old.json")

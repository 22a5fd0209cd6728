"""Reports of runs on a GPU, in series and of overhead, each of which says something of its own."""

import pytest

from tests._support import made_up, standin
from tests._support.made_up import SHAPE, cell, ops_run, report

pytest.importorskip("matplotlib")

from benchmarks import records
from benchmarks.reporting import overhead, scaling


def test_gpu_run_has_no_threads_and_microseconds(tmp_path):
    about = {**made_up.MACHINE, "gpu": standin.ABOUT}
    left_out = [{"case": "project 1x2x3x4", "why": "memory", "reason": "8 GiB"}]
    run = records.Run(
        about, {**made_up.GPU_SETTINGS, "left_out": left_out}, [cell(dtype="bf16", threads=None)]
    )
    records.save(run, tmp_path / "gpu.json")
    report([tmp_path / "gpu.json"], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "thread(s)" not in text
    assert ">threads<" not in text
    assert "10200.0" in text
    assert "floor / time" in text
    assert "project 1x2x3x4" in text
    assert "Stand-in 9000, 80 GiB" in text


def scaled(pixels, eager):
    found = cell()
    found.shape = SHAPE._replace(height=pixels, width=1)
    found.series = {"N": pixels}
    found.entries[2] = eager
    return found


def test_series_become_curves_of_time_and_memory(tmp_path):
    refused = records.Entry(
        "eager", records.PEER, records.SKIPPED, "needs about 9 GB in all", needs_bytes=9_100_000_000
    )
    cells = [scaled(400, refused), scaled(100, cell().entries[2])]
    run = ops_run(cells, mode="scaling")
    (found,) = scaling.panels(run, "N", "ms", scaling.milliseconds)
    assert found.xs == [100, 400]
    assert found.title == "project, forward\n3xNx16x4 fp32, 1 thread(s), nchw"
    ours = found.series["vt_fast cpu"][0]
    assert [ours.value, ours.low, ours.high] == pytest.approx([10.2, 7.14, 13.26])
    assert [point.value for point in found.series["eager"]] == [pytest.approx(35.3), None]
    assert found.series["eager"][1].reason == "needs 9.1 GB"
    assert [point.reason for point in found.series["sdpa"]] == ["wrong", "wrong"]
    records.save(run, tmp_path / "scaling-cpu.json")
    report([tmp_path / "scaling-cpu.json"], tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "scaling-cpu-N-time.png",
        "scaling-cpu-N-memory.png",
    }
    assert "needs 9.1 GB" in (tmp_path / "report.html").read_text()


def test_overhead_is_in_microseconds(tmp_path):
    run = ops_run(mode="overhead")
    records.save(run, tmp_path / "overhead.json")
    report([tmp_path / "overhead.json"], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| project 3x20x16x4 | forward | 10200.0 |" in text
    assert "Marks" not in text
    assert [path.name for path in tmp_path.glob("*.png")] == ["overhead-calls.png"]
    (forward, *_) = overhead.draw(run).axes
    points = [float(line.get_xdata()[0]) for line in forward.lines if line.get_marker() in "os"]
    assert points[0] == pytest.approx(10200.0)
    assert overhead.draw(records.Run({}, {}, [])) is None


def test_first_calls_are_listed(tmp_path):
    each = records.FirstCall("compile eager", "project", SHAPE, "fp32", True, [1.125], [], [7.5, 8.5], [0.25])
    run = ops_run(mode="overhead")
    run.first_calls = [each]
    records.save(run, tmp_path / "overhead.json")
    report([tmp_path / "overhead.json"], tmp_path)
    assert (
        "| compile eager | project | 3x20x16x4 | fp32 | cold | 1.12e+03 | - | 8e+03 | 250 |"
        in (tmp_path / "report.md").read_text()
    )

"""What is said of a run on a GPU: goals, the commit, what nvidia-smi tells."""

import json

from benchmarks import cases, gpu_machine, machine, records, report, running, summary
from tests._support import standin
from tests._support.gpu_rehearsal import one_cell


def test_goals():
    cells = [
        one_cell(0.91),
        one_cell(0.5),
        one_cell(0.86, which=cases.BOTH),
        one_cell(0.1, tokens=64),
        one_cell(0.1, "fp32"),
    ]
    run = records.Run(standin.GPU_MACHINE, {"device": "cuda:0", "launch_seconds": [1e-6]}, cells)
    goals = {goal.text: (met, below) for goal, met, below in summary.gpu_goals(run)}
    assert goals == {
        "bf16 forward with at most 32 tokens": ([cells[0]], [cells[1]]),
        "bf16 forward+backward with at most 32 tokens": ([cells[2]], []),
    }
    assert [mark.met for mark in summary.marks(run)][:2] == [False, True]
    assert cells[0].ours.eager_ratio == 3
    text = report.render(run)
    assert "  met: tokenize 1x4x8x16 bf16 nchw forward: 0.91 (bytes)" in text
    assert "  NOT met: tokenize 1x4x8x16 bf16 nchw forward: 0.50 (bytes)" in text
    assert list(summary.gpu_goals(records.Run(standin.MACHINE, {}, cells))) == []


def test_runs_on_a_cpu_are_still_read():
    kept = running.RESULTS / "cpu.json"
    run = records.load(kept)
    assert not run.on_gpu
    assert run.cells[0].ours.eager_seconds == []
    assert json.loads(kept.read_text())["schema"] == records.SCHEMA


def test_the_commit_may_be_told(monkeypatch):
    monkeypatch.setattr(machine, "output", lambda *command: None)
    monkeypatch.delenv("VT_FAST_COMMIT", raising=False)
    assert machine.commit() is None
    monkeypatch.setenv("VT_FAST_COMMIT", "0123abc")
    assert machine.commit() == {"hash": "0123abc", "dirty": None}
    about = standin.GPU_MACHINE | {"commit": machine.commit()}
    run = records.Run(about, {"device": "cuda:0", "launch_seconds": [1e-6]}, [one_cell(0.9)])
    assert "commit 0123abc, as the environment says" in report.render(run)


def test_what_nvidia_smi_does_not_say_is_none(monkeypatch):
    answers = {"--query-gpu=driver_version": "580.1", "--query-gpu=power.limit": "700.00 W"}
    asked = []

    def output(*command):
        asked.append(command)
        return answers.get(command[1])

    monkeypatch.setattr(machine, "output", output)
    found = gpu_machine.nvidia_smi(1, "abc")
    assert (found["driver_version"], found["power_limit"]) == ("580.1", "700.00 W")
    assert found["clocks_sm"] is None
    assert all(command[0] == "nvidia-smi" and command[-1] == "--id=GPU-abc" for command in asked)

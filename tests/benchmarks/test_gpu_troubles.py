"""What ends a run on a GPU or a part of it: time, memory, errors, compilers; with a stand-in for the GPU."""

import contextlib
import itertools
import time

import pytest
import torch

from benchmarks import gpu, limits, records, report
from benchmarks.trial import pose
from tests._support import standin
from tests._support.gpu_rehearsal import conduct


def test_the_run_stops_when_the_time_is_spent(monkeypatch, tmp_path, capsys):
    saved = []
    save = records.save
    monkeypatch.setattr(records, "save", lambda run, path: (saved.append(len(run.cells)), save(run, path)))
    steps = itertools.count()

    class Spent(limits.Deadline):
        @property
        def remaining(self):
            return 2 - next(steps)

    monkeypatch.setattr(gpu, "Deadline", Spent)
    words = ("--quick", "--op", "tokenize", "--pass", "forward", "--budget", "1")
    run, status, _ = conduct(monkeypatch, tmp_path / "run.json", *words, "--peers", "eager")
    assert (status, run.complete) == (0, False)
    assert saved == [1, 2, 2]
    left_out = run.settings["left_out"]
    assert len(left_out) == 2 * 2 * 3 - 2
    assert {item["why"] for item in left_out} == {"time"}
    text = report.render(run)
    assert "This run was not finished." in text
    assert "Left out for want of time: 10 cases, first tokenize 1x192x64x16 bf16" in text
    assert "[1/12, " in capsys.readouterr().err


def test_some_cases_at_a_time_are_prepared(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "_AHEAD", 2)
    asked = []
    words = ("--quick", "--op", "tokenize", "--pass", "forward", "--peers", "eager", "--layout", "nchw")
    run, *_ = conduct(monkeypatch, tmp_path / "run.json", *words, prepare=asked.append)
    assert [len(those) for those in asked] == [2, 2, 2]
    assert [case.label for those in asked for case in those] == [
        f"tokenize {cell.shape.label} {cell.dtype} nchw" for cell in run.cells
    ]


def test_too_large_a_case_is_left_out_and_the_next_one_measured(monkeypatch, tmp_path):
    def poor(case, device):
        if case.dtype == "fp32":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB\nand more")
        return pose(case, device)

    monkeypatch.setattr(gpu, "pose", poor)
    words = ("--quick", "--op", "project", "--layout", "nchw", "--pass", "forward", "--peers", "folded")
    run, status, _ = conduct(monkeypatch, tmp_path / "run.json", *words)
    assert (status, run.complete, run.problems) == (0, True, [])
    assert {cell.dtype for cell in run.cells} == {"bf16", "fp16"}
    assert [item["why"] for item in run.settings["left_out"]] == ["memory", "memory"]
    assert "Tried to allocate 8 GiB" in report.render(run)


def test_a_case_that_fails_is_a_problem_and_ctrl_c_saves(monkeypatch, tmp_path):
    def fails(case, device):
        if case.layout == "nchw":
            raise KeyboardInterrupt
        raise ValueError("on purpose")

    monkeypatch.setattr(gpu, "pose", fails)
    run, status, _ = conduct(monkeypatch, tmp_path / "run.json", "--quick", "--op", "stack")
    assert (status, run.complete) == (130, False)
    assert run.problems == ["stack 2x48x64x8 bf16 channels_last: ValueError: on purpose"]
    assert records.load(tmp_path / "run.json") == run


def test_a_device_that_is_lost_ends_the_run(monkeypatch, tmp_path):
    def fails(case, device):
        monkeypatch.setattr(standin.StandIn, "synchronize", lost)
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

    def lost(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "pose", fails)
    run, status, _ = conduct(monkeypatch, tmp_path / "run.json", "--quick", "--op", "tokenize")
    assert (status, run.complete, run.cells) == (0, False, [])
    assert "illegal memory access" in run.problems[0]
    assert run.problems[1].startswith("nothing runs any more after tokenize 2x48x32x8 bf16 channels_last: ")
    assert [item["why"] for item in run.settings["left_out"]] == ["device"] * 11
    assert "Left out for want of device: 11 cases" in report.render(run)


def test_compiling_is_given_up():
    def hangs():
        while True:
            with contextlib.suppress(Exception):  # as compilers do
                time.sleep(10)

    compiling = limits.Compiling(most=0.05)

    def limited(function):
        with compiling.limited():
            function()

    with pytest.raises(TimeoutError, match="given up after"):
        limited(hangs)
    limited(int)
    with pytest.raises(ZeroDivisionError):
        limited(lambda: 1 // 0)


def test_nothing_is_compiled_that_would_not_end_in_time():
    now = [0.0]
    compiling = limits.Compiling(limits.Deadline(100.0, lambda: now[0]), now=lambda: now[0])
    assert compiling.refusal() is None
    with compiling.limited():
        now[0] = 60.0
    assert "40 s are left, and one compilation took 60 s" in compiling.refusal()
    assert limits.Compiling().refusal() is None
    assert limits.Deadline().remaining == float("inf")

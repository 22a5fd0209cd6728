"""``python -m benchmarks gpu``, as far as it can be told without a GPU: all but the device itself is real."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import standin
import torch

from benchmarks import (
    cases,
    cli,
    gpu,
    gpu_machine,
    graphs,
    limits,
    machine,
    peers_gpu,
    records,
    report,
    running,
    summary,
    timing,
)
from benchmarks.ceilings import Ceilings
from benchmarks.device import Call
from benchmarks.measuring import measure
from benchmarks.trial import Trial, pose

ABOUT = standin.MACHINE
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def options(*words):
    return cli._parser().parse_args(["gpu", *words])


def conduct(monkeypatch, path, *words, refuses=lambda number: False):
    device, stand_in = standin.gpu(monkeypatch, refuses)
    about = ABOUT | {"gpu": standin.ABOUT}
    run, status = gpu.conduct(gpu.plan(options(*words)), device, about, path)
    return run, status, stand_in


def quick_cells(monkeypatch, refuses=lambda number: False, op="project", wanted=("folded", "sdpa")):
    device, stand_in = standin.gpu(monkeypatch, refuses)
    case = cases.Case(op, cases.Shape(2, 4, 5, 16, 4), "fp32", "channels_last")
    trial = Trial(case, pose(case), wanted, device)
    tops = Ceilings(case.dtype, quick=True, device=device)
    return list(measure(trial, cases.PASSES, tops, timing.QUICK)), stand_in


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """A quick run of everything, with a stand-in for the GPU."""
    path = tmp_path_factory.mktemp("gpu") / "run.json"
    with pytest.MonkeyPatch.context() as monkeypatch:
        return *conduct(monkeypatch, path, "--quick", "--dtype", "bf16"), path


def test_rehearsal_from_end_to_end(rehearsed):
    run, status, stand_in, path = rehearsed
    assert (status, run.complete, run.problems) == (0, True, [])
    assert run.settings["left_out"] == []
    assert len(run.cells) == (2 * 3 + 1) * 2 * 2
    assert {cell.op for cell in run.cells} == {*cases.OPS, cases.STACK}
    for cell in run.cells:
        assert cell.threads is None
        assert cell.map_bytes == 2 * cell.shape.batch * cell.shape.pixels * cell.shape.channels
        assert cell.floor is None or len(cell.floor.read_seconds) == len(cell.floor.copy_seconds) == 6
        assert cell.ours.timed
        for entry in cell.entries:
            assert entry.status == records.OK, (cell, entry)
            assert entry.timed_as == records.GRAPH
            assert len(entry.seconds) == len(entry.eager_seconds) == 3
            assert entry.errors.keys() == entry.allowed.keys() != set()
            assert entry.extra_bytes >= 0
            assert (entry.name == "sdpa") == (entry.note is not None)
    # one for what a launch takes, and none is left
    assert stand_in.captures == 1 + sum(len(cell.entries) for cell in run.cells)
    assert stand_in.alive == set()
    assert stand_in.current is stand_in.default
    assert records.load(path) == run
    assert not path.with_name(path.name + ".part").exists()


def test_rehearsal_is_reported(rehearsed, capsys, tmp_path):
    path = rehearsed[3]
    assert cli.main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    assert "Stand-in 9000, 80 GiB, 132 multiprocessors, sm 9.0, driver 1, CUDA 13.0, triton 3" in text
    assert "next to nothing" in text
    assert "thread" not in text
    assert "floor /" in text
    assert "its figures mean nothing" in text
    assert "Floor / time of bf16 forward+backward with at most 32 tokens" in text
    pytest.importorskip("matplotlib")
    assert cli.main(["report", str(path), "--output", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Stand-in 9000" in page
    assert "thread(s)" not in page


def test_switches_are_as_before(rehearsed):
    assert rehearsed[0].settings["tf32"] is False
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_with_tf32_fp32_is_judged_by_its_digits(monkeypatch, tmp_path):
    words = ("--quick", "--dtype", "fp32", "--op", "project", "--layout", "nchw", "--peers", "folded")
    exact, *_ = conduct(monkeypatch, tmp_path / "a.json", *words)
    coarse, *_ = conduct(monkeypatch, tmp_path / "b.json", *words, "--tf32")
    allowed = [run.cells[0].ours.allowed["map"] for run in (exact, coarse)]
    assert allowed[1] > 100 * allowed[0]
    assert "TF32" in report.render(coarse)


def test_who_cannot_be_captured_is_timed_as_a_plain_call(monkeypatch):
    cells, stand_in = quick_cells(monkeypatch, lambda number: number == 1)
    first, other, *_ = cells[0].entries
    assert (first.status, first.timed_as) == (records.OK, records.EAGER)
    assert "operation not permitted when stream is capturing" in first.note
    assert first.timed
    assert other.timed_as == records.GRAPH
    # the failed one's pool is not used again
    assert len(stand_in.pools) == 3
    assert stand_in.current is stand_in.default
    run = records.Run(ABOUT | {"gpu": standin.ABOUT}, {"device": "cuda:0", "launch_seconds": [1e-6]}, cells)
    assert "could not be captured" in report.render(run)


def test_who_can_neither_be_captured_nor_called_beside_the_graphs_ends_no_cell(monkeypatch):
    device, _ = standin.gpu(monkeypatch, lambda number: number == 1)
    poor = itertools.count(1)

    def call():
        if next(poor) > 3:  # two warm-ups and the capture
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (torch.zeros(1),)

    calls = {"poor": call, "other": lambda: (torch.ones(1),)}
    found = device.times(calls, lambda name, values: None, timing.QUICK, {}, ())
    assert (found["poor"].seconds, found["poor"].wrong) == ([], None)
    assert "nor be called: OutOfMemoryError: CUDA out of memory" in found["poor"].note
    assert (len(found["other"].seconds), len(found["other"].eager_seconds)) == (3, 3)


def test_a_call_that_fails_under_capture_leaves_the_stream_as_it_was():
    stand_in = standin.StandIn()
    captures = graphs.Captures(stand_in)
    calls = itertools.count(1)

    def fails_in_the_third():
        if next(calls) == 3:
            raise ZeroDivisionError
        return (torch.zeros(1),)

    with pytest.raises(ZeroDivisionError):
        captures.capture(fails_in_the_third)
    assert stand_in.current is stand_in.default
    replay, (value,) = captures.capture(lambda: (torch.ones(1),))
    replay()
    assert value == 1
    captures.close()
    assert stand_in.alive == set()


def test_a_graph_that_computes_something_else_has_no_figure(monkeypatch):
    capture = graphs.Captures.capture

    def slips(self, call: Call):
        replay, results = capture(self, call)
        return replay, tuple(value * 1.01 for value in results)

    monkeypatch.setattr(graphs.Captures, "capture", slips)
    cells, _ = quick_cells(monkeypatch, wanted=("folded",))
    for cell in cells:
        for entry in cell.entries:
            assert (entry.status, entry.seconds) == (records.WRONG, [])
            assert entry.reason.startswith("replayed: map is off by")


def test_sdpa_says_which_implementation_it_is(monkeypatch):
    cells, _ = quick_cells(monkeypatch)
    notes = [entry.note for cell in cells for entry in cell.entries if entry.name == "sdpa"]
    assert len(notes) == 2
    assert all(note.startswith("fused attention: ") for note in notes)


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


def test_important_cases_come_first():
    everything = gpu.plan(options()).cases
    assert len(everything) == len(set(everything)) == (9 * 3 + 1) * 3 * 2
    assert [case.dtype for case in everything] == sorted(
        (case.dtype for case in everything), key=cases.GPU_DTYPES.index
    )
    labels = list(dict.fromkeys(case.shape.label for case in everything if case.op != cases.STACK))
    assert labels[:3] == ["256x196x1024x16", "8x60800x256x8", "256x196x256x16"]
    assert [case.op for case in everything].index(cases.STACK) == 3 * 3 * 2
    # the layouts of a case, which share their numbers, are neighbours
    for first, second in zip(everything[::2], everything[1::2], strict=True):
        assert first[:3] == second[:3]
    shapes = {(s.label, s.height * s.width) for s in cases.GPU_SHAPES}
    assert ("1x1048576x1024x16", 1024 * 1024) in shapes
    some = gpu.plan(options("--dtype", "fp16", "bf16", "--op", "stack", "project")).cases
    assert [case.op for case in some].index(cases.STACK) == 3 * 2
    assert some[0].dtype == "bf16"


def test_peers_that_take_part():
    assert gpu.plan(options("--quick")).peers == list(peers_gpu.PLAIN_NAMES)
    assert gpu.plan(options("--peers", "plain")).peers == list(peers_gpu.PLAIN_NAMES)
    full = gpu.plan(options()).peers
    assert "compile flex" in full
    assert not any(name.startswith("autotune") for name in full)
    assert set(gpu.plan(options("--max-autotune")).peers) == set(peers_gpu.ALL_NAMES)
    for op, found in peers_gpu.GPU_PEERS.items():
        for peer in found:
            assert peer.compiled or torch.cuda.is_available()
            assert (peer.mode is not None) == peer.name.startswith("autotune "), op
    with pytest.raises(ValueError, match="got nobody"):
        gpu.plan(options("--peers", "nobody"))


@pytest.mark.parametrize("op", ["tokenize", "project"])
def test_flex_attention_computes_the_op(op):
    from benchmarks import gate, operands, peers, truth

    shape = cases.Shape(2, 4, 5, 16, 4)
    drawn, cotangents = operands.draw(op, shape, "fp32")
    expected = truth.solve(op, drawn, cotangents)
    (flex,) = (peer for peer in peers_gpu.GPU_PEERS[op] if peer.name == "compile flex")
    for layout in cases.LAYOUTS:
        inputs = {name: drawn[name] for name in peers.operand_names(flex.function)}
        inputs["x"] = operands.lay_out(inputs["x"], shape, layout)
        found = zip(truth.RESULTS[op], flex.function(*inputs.values()), strict=True)
        assert max(gate.errors(found, expected).values()) < 1e-5


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


def _cell(reached, dtype="bf16", which=cases.FORWARD, tokens=16):
    floor = records.Floor(1, 0, 100, [1.0], 1, [1.0])  # 100 bytes/s
    entry = records.Entry(
        "vt_fast triton", records.OURS, seconds=[1.0], eager_seconds=[3.0], timed_as="graph"
    )
    shape = cases.Shape(1, 2, 2, 8, tokens)
    return records.Cell("tokenize", shape, dtype, "nchw", None, which, int(100 * reached), floor, [entry])


def test_goals():
    cells = [
        _cell(0.91),
        _cell(0.5),
        _cell(0.86, which=cases.BOTH),
        _cell(0.1, tokens=64),
        _cell(0.1, "fp32"),
    ]
    run = records.Run(ABOUT | {"gpu": standin.ABOUT}, {"device": "cuda:0", "launch_seconds": [1e-6]}, cells)
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
    assert list(summary.gpu_goals(records.Run(ABOUT, {}, cells))) == []


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
    about = ABOUT | {"commit": machine.commit(), "gpu": standin.ABOUT}
    run = records.Run(about, {"device": "cuda:0", "launch_seconds": [1e-6]}, [_cell(0.9)])
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


@NO_GPU
def test_without_a_gpu_it_says_so(capsys):
    assert cli.main(["gpu", "--quick"]) == 2
    assert "error: torch finds no CUDA or ROCm device" in capsys.readouterr().err


def test_a_full_run_gets_the_name_of_its_gpu(monkeypatch, tmp_path, capsys):
    about = ABOUT | {"gpu": standin.ABOUT}
    finished = [True]

    def conducted(todo, device, told, path):
        settings = {**standin.GPU_SETTINGS, "elapsed_seconds": 1.0}
        run = records.Run(told, settings, [_cell(0.9)], complete=finished[0])
        records.save(run, path)
        return run, 0

    monkeypatch.setattr(gpu_machine, "unusable", lambda index: None)
    monkeypatch.setattr(gpu, "Gpu", lambda index: None)
    monkeypatch.setattr(gpu_machine, "describe", lambda index: about)
    monkeypatch.setattr(gpu, "conduct", conducted)
    everything = ["gpu", "--results", str(tmp_path), "--budget", "100"]
    assert cli.main([*everything, "--op", "stack"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-partial.json"]
    assert cli.main(everything) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-stand-in-9000.json"]
    finished[0] = False
    assert cli.main(everything) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-partial.json", "gpu-stand-in-9000.json"]
    assert cli.main([*everything, "--output", str(tmp_path / "my.json")]) == 0
    assert records.load(tmp_path / "my.json").machine == about
    assert "my.json after 1 s" in capsys.readouterr().out


@NO_GPU
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_without_a_gpu(tmp_path):
    done = script(tmp_path)
    assert done.returncode == 2
    assert "torch finds no GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def script(folder, **environment):
    told = {**os.environ, "PYTHON": sys.executable, "OUT": str(folder), **environment}
    command = ["bash", str(machine.ROOT / "benchmarks" / "gpu.sh")]
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=600)


# Python as gpu.sh calls it: says that all is there, and notes what it was to run.
PRETENDER = """#!/usr/bin/env bash
case "$*" in
"-m pytest"*) echo "$*" >>"$CALLS"; exit "$TESTS" ;;
"-m benchmarks"*) echo "$*" >>"$CALLS"; echo {} >"$OUT/gpu-partial.json"; exit "$BENCHMARK" ;;
*round*) exec "$REAL" "$@" ;;
esac
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("tested", "measured", "status"), [(0, 0, 0), (1, 0, 1), (0, 2, 1), (5, 1, 1)])
def test_the_script_runs_both_and_fails_if_one_does(tmp_path, tested, measured, status):
    python, calls, out = tmp_path / "python", tmp_path / "calls", tmp_path / "out"
    python.write_text(PRETENDER)
    python.chmod(0o755)
    told = {"PYTHON": python, "CALLS": calls, "REAL": sys.executable, "TESTS": tested, "BENCHMARK": measured}
    told |= {"VT_FAST_GPU_BUDGET": "2.5", "VT_FAST_GPU_QUICK": "1"}
    done = script(out, **{name: str(value) for name, value in told.items()})
    assert done.returncode == status, done.stderr
    first, second = calls.read_text().splitlines()
    assert f"-m pytest -m gpu -p no:cacheprovider --junitxml={out}/gpu-tests.xml" in first
    assert "tests/benchmarks/test_gpu_benchmark.py" in first
    assert second == f"-m benchmarks gpu --results {out} --budget 2.5 --quick"
    assert done.stdout.endswith(f"{out}/gpu-partial.json\n")
    assert f"status is {tested}" in done.stderr or not tested


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_runs_the_memory_checker_where_it_is_asked_to(tmp_path):
    python, checker, calls, out = (
        tmp_path / name for name in ("python", "compute-sanitizer", "calls", "out")
    )
    python.write_text(PRETENDER)
    checker.write_text('#!/usr/bin/env bash\necho "$*" >>"$CALLS"; [[ $2 == memcheck ]]\n')
    python.chmod(0o755)
    checker.chmod(0o755)
    told = {
        "PYTHON": str(python),
        "CALLS": str(calls),
        "REAL": sys.executable,
        "TESTS": "0",
        "BENCHMARK": "0",
    }
    told |= {"VT_FAST_GPU_CHECK": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = script(out, **told)
    assert done.returncode == 1
    assert "error: racecheck failed, its status is 1" in done.stderr
    tested, memory, race, measured = calls.read_text().splitlines()
    assert "pytest" in tested
    assert memory.startswith("--tool memcheck")
    assert f"--log-file {out}/gpu-racecheck.txt {python} -m pytest -m gpu" in race
    checked = [machine.ROOT / word for word in race.split() if word.startswith("tests/")]
    assert len(checked) == 2
    assert all(path.exists() for path in checked)
    assert "benchmarks gpu" in measured


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_says_what_is_wrong(tmp_path):
    done = script(tmp_path, VT_FAST_GPU_BUDGET="long")
    assert done.returncode == 2
    assert 'must be a number of minutes, got "long"' in done.stderr
    done = script(tmp_path, PYTHON="no-such-python")
    assert done.returncode == 2
    assert '"no-such-python" is not on this machine' in done.stderr


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_quick_run_on_a_gpu(tmp_path):
    # In a process of its own: the tests' deterministic algorithms are none that one would measure.
    path = tmp_path / "quick.json"
    command = [sys.executable, "-m", "benchmarks", "gpu", "--quick", "--output", str(path)]
    done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = records.load(path)
    assert run.complete
    assert len(run.cells) == (2 * 3 + 1) * 3 * 2 * 2
    for cell in run.cells:
        assert cell.ours.name == "vt_fast triton"
        assert cell.ours.timed_as == records.GRAPH, cell.ours.note
        assert cell.ours.timed

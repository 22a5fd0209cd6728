"""``python -m benchmarks gpu``, from its arguments to its file, as far as it can run without a GPU."""

import subprocess
import sys

import pytest
import torch

from benchmarks import cases, cli, gpu, gpu_machine, machine, peers_gpu, records, report
from tests._support import standin
from tests._support.gpu_rehearsal import conduct, one_cell, options

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


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


@NO_GPU
def test_without_a_gpu_it_says_so(capsys):
    assert cli.main(["gpu", "--quick"]) == 2
    assert "error: torch finds no CUDA or ROCm device" in capsys.readouterr().err


def test_a_full_run_gets_the_name_of_its_gpu(monkeypatch, tmp_path, capsys):
    about = standin.GPU_MACHINE
    finished = [True]

    def conducted(todo, device, told, path, prepare):
        settings = {**standin.GPU_SETTINGS, "elapsed_seconds": 1.0}
        run = records.Run(told, settings, [one_cell(0.9)], complete=finished[0])
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

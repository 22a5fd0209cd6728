"""Hardware counters, with a stand-in for Nsight Compute and for the GPU."""

import os
import sys
import time

import pytest

pytest.importorskip("triton")

from benchmarks import results
from tools.counters import launches, nsight
from tools.counters.__main__ import main
from tools.triton.calls import Call

STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
NAMES = [
    "ID",
    "Kernel Name",
    "Block Size",
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "launch__registers_per_thread",
    STALLED.format("long_scoreboard"),
    STALLED.format("wait"),
    "smsp__average_warps_issue_stalled_wait_not_issued_per_issue_active.ratio",
    "device__attribute_display_name",
]
UNITS = ["", "", "", "ns", "byte", "byte", "%", "register/thread", "inst", "inst", "inst", ""]


def line(number, kernel, *values):
    words = [str(number), kernel, "(128, 1, 1)", *values, "GPU, large"]
    return ",".join(f'"{word}"' for word in words)


def table(*kernels):
    rows = [",".join(f'"{word}"' for word in words) for words in (NAMES, UNITS)]
    values = ("35,500", "102,760,448", "1,024", "91.25", "168", "7.5", "1.25", "9.0")
    rows += [line(number, kernel, *values) for number, kernel in enumerate(kernels)]
    return "\n".join(["==PROF== Connected to process 1", *rows, "==PROF== Disconnected"])


NCU = """#!{python}
import json, os, sys
words = sys.argv[1:]
assert words[words.index("--clock-control") + 1] == "none"
log, start = words[words.index("--log-file") + 1], words.index("tools.counters.profiled_calls")
backend, path, *jobs = words[start + 1 :]
kernels = []
with open(path, "w") as file:
    while jobs:
        about, jobs = dict(zip(("op", "dtype", "layout", "shape"), jobs)), jobs[4:]
        for kernel in os.environ["KERNELS"].split():
            kernels.append(kernel)
            file.write(json.dumps(about | dict(kernel=kernel, setting="tile=64", programs=9)) + chr(10))
open(log, "w").write(os.environ["TABLE"])
print("said on the way")
sys.exit(int(os.environ["STATUS"]))
"""


@pytest.fixture
def ncu(monkeypatch, tmp_path):
    """Puts a program of this name on the PATH; a GPU seems to be there."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ncu"
    program.write_text(NCU.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(launches.machine, "unusable", lambda device: None)
    monkeypatch.setattr(launches.machine, "describe", lambda device: {"gpu": {"name": "Stand-in 9000"}})

    def prepare(kernels="tokenize_forward combine", text=None, status=0):
        monkeypatch.setenv("KERNELS", kernels)
        monkeypatch.setenv("TABLE", table(*kernels.split()) if text is None else text)
        monkeypatch.setenv("STATUS", str(status))

    prepare()
    return prepare


WORDS = ["--op", "tokenize", "--shape", "256x196x1024x16", "--layout", "nchw"]


def test_counters_stand_beside_what_was_launched(ncu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launches, "__file__", str(tmp_path / "launches.py"))
    assert main(WORDS) == 0
    path = tmp_path / "counters-triton-stand-in-9000.csv"
    facts, (first, second) = results.read(path)
    assert list(facts) == ["machine", "commit"]
    assert (first["kernel"], first["layout"], first["setting"]) == ("tokenize_forward", "nchw", "tile=64")
    assert int(first["compulsory_bytes"]) == 2 * 256 * 196 * 1024
    assert second["compulsory_bytes"] == ""
    assert float(first["gpu__time_duration.sum"]) == pytest.approx(35.5e-6)
    assert first["dram__bytes_read.sum"] == "102760448"
    assert "device__attribute_display_name" not in first
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("tokenize_forward"))
    words = ["256x196x1024x16", "bf16", "nchw", "tile=64", "35.5", "1.00", "91", "-", "-", "-", "168"]
    assert row.split()[1:] == [*words, "long_scoreboard", "7.5,", "wait", "1.2"]
    assert main(["--show", str(path)]) == 0
    assert row in capsys.readouterr().out


CUDA = ["void vt::cuda::start_kernel<vt::cuda::Backward<vt::cuda::Bf16, 0, 2, 4, 16, 1, 1>>(vt::cuda::Call)"]
CUDA += ["void unnamed>::start_small_kernel<CombineRows<Bf16, 0, 1, 0, 4>>(Call)"]


def test_counters_of_the_cuda_kernels(ncu, monkeypatch, tmp_path):
    monkeypatch.setattr(launches, "__file__", str(tmp_path / "launches.py"))
    ncu(text=table(*CUDA))
    assert main([*WORDS, "--op", "tokenize_backward", "--backend", "cuda"]) == 0
    _, (first, second) = results.read(tmp_path / "counters-cuda-stand-in-9000.csv")
    assert (first["op"], first["kernel"]) == ("tokenize_backward", "Backward")
    assert first["setting"] == "vt::cuda::Bf16, 0, 2, 4, 16, 1, 1"
    assert int(first["compulsory_bytes"]) == 2 * 2 * 256 * 196 * 1024
    assert (second["kernel"], second["compulsory_bytes"]) == ("CombineRows", "")
    ncu(text=table("combine"))
    with pytest.raises(RuntimeError, match="'combine', which is none of the CUDA kernels"):
        launches.profiled_cuda(Call.of("tokenize", "bf16", "nchw", "8x196x64x16"))


@pytest.mark.parametrize(
    ("prepared", "problem"),
    [
        ({"status": 1, "text": "==ERROR== ERR_NVGPUCTRPERM"}, "ncu failed with status 1: .*ERR_NVGPUCTRPERM"),
        (
            {"text": "==WARNING== No kernels were profiled."},
            "profiled no kernel; its last line: .*No kernels",
        ),
        ({"text": table("combine", "combine")}, "ncu profiled .*, but .* were launched"),
    ],
)
def test_a_failed_profile_is_an_error(ncu, prepared, problem):
    ncu(**prepared)
    with pytest.raises(RuntimeError, match=problem):
        launches.profiled([Call.of("tokenize", "bf16", "nchw", "8x196x64x16")])


def test_the_command_reports_a_failed_profile(ncu, tmp_path, capsys):
    ncu(status=3)
    output = tmp_path / "out.csv"
    assert main([*WORDS, "--output", str(output)]) == 1
    assert "ncu failed with status 3" in capsys.readouterr().err
    assert not output.exists()


def test_unusable_arguments_and_machines_are_refused(ncu, monkeypatch, capsys):
    def refusal(words):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        return capsys.readouterr().err

    assert "`shape` must be BxNxCxL, got '2x3'" in refusal(["--shape", "2x3"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert "ncu (Nsight Compute, in NVIDIA's CUDA toolkit) is not on the PATH" in refusal(WORDS)
    monkeypatch.setattr(launches.machine, "unusable", lambda device: "there is no GPU")
    assert "no counters can be read here: there is no GPU" in refusal(WORDS)


def test_a_profiler_that_hangs_is_killed_with_its_child(monkeypatch, tmp_path):
    program, lived = tmp_path / "ncu", tmp_path / "lived"
    program.write_text(f"#!/bin/sh\n(sleep 2; touch {lived}) &\nwait\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="ncu did not finish in 0 s"):
        nsight.profile(["true"], ["combine"], tmp_path / "log", 0.2)
    time.sleep(2.5)
    assert not lived.exists()

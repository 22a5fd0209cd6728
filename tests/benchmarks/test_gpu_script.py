"""``benchmarks/gpu.sh``, with a stand-in for Python."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks.processes import ROOT

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def script(folder, **environment):
    told = {**os.environ, "PYTHON": sys.executable, "OUT": str(folder), **environment}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh")]
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=600)


# Python as gpu.sh calls it: finds every package, and records which commands it was given.
PRETENDER = """#!/usr/bin/env bash
case "$*" in
"-m pytest"*) echo "$*" >>"$CALLS"; exit "$TESTS" ;;
"-m benchmarks"*) echo "$*" >>"$CALLS"; echo >"$OUT/gpu-partial.csv"; exit "$BENCHMARK" ;;
*round*) exec "$REAL" "$@" ;;
esac
"""


@NO_GPU
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_without_a_gpu(tmp_path):
    done = script(tmp_path)
    assert done.returncode == 2
    assert "torch finds no GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("tested", "measured", "status", "jobs"), [(0, 0, 0, 1), (1, 0, 1, 3), (0, 2, 1, 1), (5, 1, 1, 2)]
)
def test_the_script_runs_both_and_fails_if_one_does(tmp_path, tested, measured, status, jobs):
    python, calls, out = tmp_path / "python", tmp_path / "calls", tmp_path / "out"
    python.write_text(PRETENDER)
    python.chmod(0o755)
    told = {"PYTHON": python, "CALLS": calls, "REAL": sys.executable, "TESTS": tested, "BENCHMARK": measured}
    told |= {"VT_FAST_GPU_BUDGET": "2.5", "VT_FAST_GPU_QUICK": "1", "VT_FAST_GPU_JOBS": jobs}
    done = script(out, **{name: str(value) for name, value in told.items()})
    assert done.returncode == status, done.stderr
    first, second, third = calls.read_text().splitlines()
    parallel = "" if jobs == 1 else f" -n {jobs} --dist worksteal"
    assert f"-m pytest -m gpu -p no:cacheprovider{parallel} --junitxml={out}/gpu-tests.xml" in first
    assert "tests/test_testing.py" in first, "it has a test that is marked"
    assert "tests/test_pairs.py" not in first
    large = "tests/gpu/test_large.py"
    assert f"--ignore={large} tests/gpu tests/ops" in first
    assert second.startswith("-m pytest -m gpu -p no:cacheprovider --junitxml=")
    assert second.endswith(large)
    assert (ROOT / large).exists()
    assert third == f"-m benchmarks gpu --results {out} --budget 2.5 --quick"
    assert done.stdout.endswith(f"{out}/gpu-partial.csv\n")
    assert f"failed with status {tested}" in done.stderr or not tested


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
    assert "error: racecheck (tests/gpu/test_sizes.py tests/gpu/test_masks.py): failed" in done.stderr
    assert "error: memcheck" not in done.stderr
    tested, _, memory, race, measured = calls.read_text().splitlines()
    assert "pytest" in tested
    assert memory.startswith("--tool memcheck")
    assert f"--log-file {out}/gpu-racecheck.txt {python} -m pytest -m gpu" in race
    checked = [ROOT / word for word in race.split() if word.startswith("tests/")]
    assert len(checked) == 2
    assert all(path.exists() for path in checked)
    assert "benchmarks gpu" in measured


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_says_what_is_wrong(tmp_path):
    done = script(tmp_path, VT_FAST_GPU_BUDGET="long")
    assert done.returncode == 2
    assert 'must be a number of minutes, got "long"' in done.stderr
    python = tmp_path / "python"
    python.write_text(PRETENDER + '[[ "$*" != "-c import xdist" ]]\n')
    python.chmod(0o755)
    for jobs, complaint in (("0", 'must be a number of processes, got "0"'), ("2", "needs pytest-xdist")):
        done = script(tmp_path, PYTHON=str(python), VT_FAST_GPU_JOBS=jobs)
        assert done.returncode == 2
        assert complaint in done.stderr
    python.write_text(PRETENDER + '[[ "$*" != "-c import msgspec" ]]\n')
    done = script(tmp_path, PYTHON=str(python))
    assert done.returncode == 2
    assert "msgspec does not import" in done.stderr
    done = script(tmp_path, PYTHON="no-such-python")
    assert done.returncode == 2
    assert '"no-such-python" is not on this machine' in done.stderr

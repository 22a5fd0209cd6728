"""``benchmarks/gpu.sh``, with a stand-in for Python."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks.processes import ROOT

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# Python as gpu.sh calls it: finds every package but the absent one, and records which commands it was given.
PRETENDER = """#!/usr/bin/env bash
case "$*" in
"-c import $ABSENT") exit 1 ;;
"-m vt_fast check"*) exit "${WRONG:-0}" ;;
"-m pytest"*) echo "$*" >>"$CALLS"; exit "$TESTS" ;;
"-m benchmarks"*) echo "$*" >>"$CALLS"; echo >"$OUT/gpu-partial.csv"; exit "$BENCHMARK" ;;
*round*) exec "$REAL" "$@" ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    """Runs gpu.sh in an environment; it has the paths of what it is given."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(PRETENDER)
    python.chmod(0o755)

    def run(**environment):
        told = {"PYTHON": python, "OUT": out, "CALLS": tmp_path / "calls", "REAL": sys.executable}
        told |= {"TESTS": 0, "BENCHMARK": 0, "ABSENT": "nothing", **environment}
        told = {**os.environ, **{name: str(value) for name, value in told.items()}}
        command = ["bash", str(ROOT / "benchmarks" / "gpu.sh")]
        done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=600)
        calls = tmp_path / "calls"
        return SimpleNamespace(done=done, calls=calls.read_text().splitlines() if calls.exists() else [])

    return SimpleNamespace(run=run, out=out, python=python)


@pytest.mark.parametrize(("tested", "measured", "status", "jobs"), [(0, 0, 0, 1), (1, 0, 1, 3), (5, 1, 1, 2)])
def test_the_script_runs_both_and_fails_if_one_does(script, tested, measured, status, jobs):
    told = {"VT_FAST_GPU_BUDGET": "2.5", "VT_FAST_GPU_QUICK": "1", "VT_FAST_GPU_JOBS": jobs}
    found = script.run(TESTS=tested, BENCHMARK=measured, **told)
    assert found.done.returncode == status, found.done.stderr
    first, second, third = found.calls
    parallel = "" if jobs == 1 else f" -n {jobs} --dist worksteal"
    pytest = "-m pytest -m gpu -p no:cacheprovider --timeout=600 --timeout-method=thread"
    xml = f"{pytest}{parallel} --junitxml={script.out}/gpu-tests.xml"
    large = "tests/gpu/test_large.py"
    assert first.startswith(f"{xml} --ignore={large} tests/gpu tests/ops tests/cuda ")
    assert "tests/test_testing.py" in first, "it has a test that is marked"
    assert "tests/test_pairs.py" not in first
    assert second.startswith(f"{pytest} --junitxml=")
    assert second.endswith(large)
    assert (ROOT / large).exists()
    assert third == f"-m benchmarks gpu --results {script.out} --budget 2.5 --quick"
    assert found.done.stdout.endswith(f"{script.out}/gpu-partial.csv\n")
    assert f"failed with status {tested}" in found.done.stderr or not tested


def test_wrong_kernels_are_told_and_tested_all_the_same(script):
    found = script.run(WRONG=1)
    assert found.done.returncode == 1
    assert "error: check (python -m vt_fast check): failed with status 1" in found.done.stderr
    assert len(found.calls) == 3


def test_tests_have_no_timeout_without_its_package(script):
    found = script.run(ABSENT="pytest_timeout", VT_FAST_GPU_JOBS=1)
    assert found.done.returncode == 0, found.done.stderr
    assert len(found.calls) == 3
    assert "--timeout" not in " ".join(found.calls)


def test_the_script_runs_the_memory_checker_where_it_is_asked_to(script):
    checker = script.python.with_name("compute-sanitizer")
    checker.write_text('#!/usr/bin/env bash\necho "$*" >>"$CALLS"; [[ $2 == memcheck ]]\n')
    checker.chmod(0o755)
    found = script.run(VT_FAST_GPU_CHECK=1, PATH=f"{checker.parent}:{os.environ['PATH']}")
    assert found.done.returncode == 1
    failed = "error: racecheck (tests/gpu/test_sizes.py tests/gpu/test_masks.py tests/cuda/"
    assert failed in found.done.stderr
    assert "error: memcheck" not in found.done.stderr
    _, _, memory, race, _ = found.calls
    assert memory.startswith("--tool memcheck")
    assert f"--log-file {script.out}/gpu-racecheck.txt {script.python} -m pytest -m gpu" in race
    checked = [ROOT / word.partition("::")[0] for word in race.split() if word.startswith("tests/")]
    assert [path.exists() for path in checked] == [True, True, True]


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({"VT_FAST_GPU_BUDGET": "long"}, 'must be a number of minutes, got "long"'),
        ({"VT_FAST_GPU_JOBS": 0}, 'must be a number of processes, got "0"'),
        ({"VT_FAST_GPU_JOBS": 2, "ABSENT": "xdist"}, "needs pytest-xdist"),
        ({"ABSENT": "msgspec"}, "msgspec does not import"),
        ({"PYTHON": "no-such-python"}, '"no-such-python" is not on this machine'),
        ({"PYTHON": sys.executable}, "torch finds no GPU"),
    ],
)
def test_the_script_says_what_is_wrong(script, told, complaint):
    if "torch" in complaint and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    found = script.run(**told)
    assert found.done.returncode == 2
    assert complaint in found.done.stderr
    assert found.calls == []

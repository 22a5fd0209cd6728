"""`python -m vt_fast check` says which kernels are right, and notices those that are not."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from vt_fast import functional, self_test
from vt_fast.__main__ import main

COUNT = itertools.count()


@pytest.fixture(autouse=True)
def _one_dtype(monkeypatch):
    monkeypatch.setattr(self_test, "_DTYPES", (torch.float32,))


@pytest.fixture
def spoilt(monkeypatch):
    """What the backend "torch" returns for maps goes through a function."""

    def spoil(function):
        project = functional.project

        def wrong(*args, backend=None, **options):
            found = project(*args, backend=backend, **options)
            return function(found) if backend == "torch" else found

        monkeypatch.setattr(functional, "project", wrong)

    return spoil


def test_every_backend_is_right_here(capsys):
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.partition("\ncheck\n")[2].splitlines() if line.startswith("  ")]
    assert [line[3] for line in lines] == ["right"] * len(lines)
    assert ["torch", "cpu", "float32", "right"] in [line[:4] for line in lines]
    assert "torch" in out.partition("Right on this machine: ")[2]
    assert "versions" in out


def test_all_dtypes_are_right(monkeypatch):
    monkeypatch.undo()
    found = [outcome for outcome in self_test.check(seconds=500) if outcome.backend == "torch"]
    assert {outcome.dtype for outcome in found} == {"float32", "bfloat16", "float16", "float64"}
    assert {outcome.verdict for outcome in found} == {"right"}
    assert {outcome.calls for outcome in found} == {14}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda found: found * 1.001, "result 0: largest error"),
        (lambda found: found.new_full((), torch.nan) + found, "result 0: NaN in"),
        (lambda found: found + 1e-3 * (found - found.detach()), "gradient of x: largest error"),
        (lambda found: found * (1 + 2**-23 * (next(COUNT) % 2)), "result 0: other bits when asked for again"),
    ],
    ids=["value", "nan", "gradient", "bits"],
)
def test_wrong_results_are_noticed(spoilt, capsys, function, message):
    spoilt(function)
    assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert "float32   WRONG" in out
    assert f"      project, channels last, residual: {message}" in out
    assert "WRONG on this machine: torch. Please report it" in out


def test_a_kernel_that_does_not_run_is_wrong_and_a_refusal_is_not(monkeypatch, capsys):
    def raising(error):
        def function(*args, **options):
            raise error

        return function

    monkeypatch.setattr(functional, "project", raising(RuntimeError("ptxas died\nof something")))
    refusal = ValueError('`backend="torch"` cannot do this call: too many')
    monkeypatch.setattr(functional, "tokenize", raising(refusal))
    assert main(["check", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["check"]
    row = next(row for row in rows if row["backend"] == "torch")
    assert row["verdict"] == "WRONG"
    assert row["refused"] == ["too many"]
    assert row["calls"] == 4
    assert row["wrong"][0] == "project, channels last, residual: RuntimeError: ptxas died"


def test_an_error_in_the_arguments_is_not_hidden(monkeypatch):
    monkeypatch.setattr(self_test, "_CALLS", [("tokenize", ("heads", "extra_values"))])
    for outcome in self_test.check():
        assert outcome.verdict == "WRONG"
        assert "`num_heads` must be 1 where `extra_values` is given" in outcome.wrong[0]


def test_nan_is_no_sign_of_other_bits(spoilt, capsys):
    spoilt(lambda found: found * torch.nan)
    assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert "result 0: NaN in" in out
    assert "other bits" not in out


def test_what_was_not_tried_is_not_called_right(monkeypatch, capsys):
    ticks = itertools.count()
    monkeypatch.setattr(self_test.time, "monotonic", lambda: next(ticks))
    assert main(["check", "--seconds", "4"]) == 0
    assert "Right on this machine, as far as there was time: " in capsys.readouterr().out


def test_what_there_is_no_time_for_is_said(capsys):
    assert main(["check", "--seconds", "1e-9"]) == 0
    out = capsys.readouterr().out
    assert "not tried" in out
    assert "no time for 14 calls: --seconds 600 gives more" in out
    assert "Right on this machine" not in out


@pytest.mark.parametrize(("name", "status"), [("torch", 0), ("cuda", 1), ("tritonn", 1)])
def test_a_required_backend_must_have_run(capsys, name, status):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["check", "--require", name]) == status
    assert (f'error: no call of the backend "{name}" has run' in capsys.readouterr().err) == bool(status)


def test_what_has_no_time_has_not_run():
    assert main(["check", "--seconds", "1e-9", "--require", "torch"]) == 1


def test_time_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--seconds", "0"])
    assert "must be a positive number, got 0" in capsys.readouterr().err


def run(command, **environment):
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_without_torch_it_says_what_info_says(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: no such file')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ".")])
    done = run(f"{sys.executable} -m vt_fast check", PYTHONPATH=path)
    assert done.returncode == 1
    assert "versions" in done.stdout
    assert done.stderr == "error: nothing can be checked: OSError: libtorch.so: no such file\n"


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_output_may_be_closed():
    done = run(f"{sys.executable} -m vt_fast info >&-")
    assert (done.returncode, done.stderr) == (0, "")

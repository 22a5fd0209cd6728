"""Tuning: which setting wins, what is left out, and what the next call is launched with."""

import json
import re

import pytest
import torch

from vt_fast import tune
from vt_fast.__main__ import main
from vt_fast.backends.triton import ahead, samples, schedule, settings
from vt_fast.backends.triton.schedule import observed
from vt_fast.backends.triton.settings import STREAM, Problem, Setting

FIRST, SECOND, WRONG = (Setting(16, 16, own, STREAM, 4, 1) for own in (1, 2, 3))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def few(monkeypatch):
    """Two settings to try besides the one that would be used."""
    monkeypatch.setattr(settings, "candidates", lambda problem: [FIRST, SECOND])


@pytest.mark.parametrize("op", samples.KERNELS)
def test_the_fastest_wins_and_is_used(op, few, tmp_path, monkeypatch):
    case = tune.Case(op, "fp32", "channels", (2, 9, 32, 4))

    def clock(function):
        function()
        return [2.0, 1.0, 3.0] if settings._only.value == SECOND else [4.0]

    entry = tune.tune(case, clock, DEVICE)
    assert Setting(**entry["setting"]) == SECOND
    assert entry["measured_us"] == 2e6
    assert len(entry["tried"]) == 3
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"schema": settings.SCHEMA, "entries": [entry]}))
    monkeypatch.setenv(settings.VARIABLE, str(path))
    problem = Problem(samples.KERNELS[op], "ieee", "channels", 32, 16, 9)
    assert settings.choices(problem, "none")[0].own == SECOND.own


def test_a_setting_with_other_results_does_not_win(few, monkeypatch):
    def clock(function):
        return [1.0] if settings._only.value == FIRST else [2.0]

    honest = tune._distance
    monkeypatch.setattr(
        tune, "_distance", lambda *both: float("nan") if settings._only.value == FIRST else honest(*both)
    )
    entry = tune.tune(tune.Case("project", "fp32", "pixels", (2, 9, 32, 4)), clock, DEVICE)
    assert Setting(**entry["setting"]) != FIRST
    assert any("off by nan" in each.get("left_out", "") for each in entry["tried"])


def test_a_setting_that_fails_is_left_out(few):
    def clock(function):
        if settings._only.value == FIRST:
            raise RuntimeError("out of registers")
        return [1.0]

    entry = tune.tune(tune.Case("tokenize", "fp32", "channels", (2, 9, 32, 4)), clock, DEVICE)
    assert Setting(**entry["setting"]) != FIRST
    assert any("out of registers" in each.get("left_out", "") for each in entry["tried"])


@pytest.mark.parametrize("op", samples.KERNELS)
def test_what_will_be_launched_is_known_before(op, few):
    case = tune.Case(op, "fp32", "channels", (2, 9, 32, 4))

    def described(kernel, arguments, constants):
        return kernel, numbers(arguments), constants

    def numbers(value):
        if isinstance(value, tuple):
            return tuple(map(numbers, value))
        return "tensor" if isinstance(value, torch.Tensor | ahead.Operand) else value

    launched = []

    def note(kernel, grid, arguments, constants):
        launched.append(described(kernel.__name__, arguments, constants))
        kernel[grid](*arguments, **constants)

    with observed(note):
        tune.tune(case, lambda function: [1.0], DEVICE)
    asked = tune.requests(case, torch.device(DEVICE, 0))
    asked = [described(each.name, each.arguments, each.constants) for each in asked]
    assert len(launched) > 2
    assert [each for each in launched if each not in asked] == []
    assert [each for each in asked if each not in launched] == []


def test_what_fits_nowhere_is_not_compiled_ahead(few, monkeypatch):
    monkeypatch.setattr(schedule, "traits", lambda where: schedule.Traits("none", 4, 1))
    case = tune.Case("tokenize_backward", "fp32", "channels", (2, 9, 32, 4))
    assert tune.requests(case, torch.device(DEVICE, 0)) == []
    with pytest.raises(RuntimeError, match="no launch setting"):
        tune.tune(case, lambda function: [1.0], DEVICE)


def test_all_failing_is_an_error(few):
    def clock(function):
        raise RuntimeError("no clock")

    with pytest.raises(RuntimeError, match=r"no setting of tokenize fp32 channels 2x9x32x4 .* no clock"):
        tune.tune(tune.Case("tokenize", "fp32", "channels", (2, 9, 32, 4)), clock, DEVICE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "pool"], r"`ops` must be of tokenize, .*, got 'pool'"),
        (["--dtype", "fp64"], r"`dtypes` must be of bf16, fp16, fp32, got 'fp64'"),
        (["--layout", "nhwc"], r"`layouts` must be of channels, pixels, got 'nhwc'"),
    ],
)
def test_unknown_names(arguments, message, capsys):
    assert main(["tune", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_shape_has_four_sizes(capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--shape", "1x2x3"])
    assert "BxNxCxL" in capsys.readouterr().err or "--shape" in capsys.readouterr().err


def test_there_is_at_least_one_process(capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--jobs", "0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path, capsys):
    assert main(["tune", "--output", str(tmp_path / "out.json")]) == 2
    assert "nothing can be tuned here" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path):
    path = tmp_path / "out.json"
    arguments = ["--op", "tokenize", "--layout", "channels", "--shape", "8x196x256x16"]
    assert main(["tune", *arguments, "--output", str(path)]) == 0
    (entry,) = json.loads(path.read_text())["entries"]
    assert 1 < entry["measured_us"] < 1000
    assert sum("seconds" in each for each in entry["tried"]) >= 3

"""Results do not depend on how a call is cut into programs, tiles and chunks."""

import contextlib

import pytest
import torch

from tests._support.comparing import assert_solved
from tests._support.launch_settings import SETTINGS, pretend
from tests._support.pairs import pairs
from tests._support.problems import OPS, make
from vt_fast.backends import triton
from vt_fast.backends.contract import CannotRunError, Tokenize, TokenizeBackward
from vt_fast.backends.triton import maps, schedule, settings
from vt_fast.backends.triton.settings import KEEP, STREAM, WHOLE, Setting

OPTIONS = {
    "tokenize": ("mask", "pixel_bias", "extra_values", "shared"),
    "project": ("residual", "wide", "num_heads", "token_bias", "shared"),
    "project_tokenize": ("num_heads", "token_bias"),
}
# With what the residual is x itself, keys have other lengths than queries, and nothing is shared.
PLAIN = {"tokenize": ("mask", "num_heads"), "project": (), "project_tokenize": ("mask", "pixel_bias")}
LAYOUTS = ("nchw", "channels_last", "nchw, sliced")
FORMS = (KEEP, STREAM, WHOLE)


@pytest.fixture
def use():
    """Every kernel is launched with this setting."""
    with contextlib.ExitStack() as stack:
        yield lambda setting: stack.enter_context(settings.using(setting))


@pytest.fixture
def pretend_processors(monkeypatch):
    """As many multiprocessors as one wants."""
    return lambda number: pretend(monkeypatch, processors=number)


@pytest.mark.parametrize(("op", "setting", "layout"), pairs(OPS, SETTINGS, LAYOUTS), ids=str)
def test_settings_change_nothing(op, setting, layout, use, pretend_processors):
    pretend_processors(2)  # enough programs, so that each takes all channels where it can
    use(setting)
    assert_solved(make(op, OPTIONS[op], layout, channels=48, height=9, width=7))


@pytest.mark.parametrize("setting", SETTINGS[4:8], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_settings_change_nothing_where_nothing_is_shared(op, setting, use, pretend_processors):
    pretend_processors(2)
    use(setting)
    assert_solved(make(op, PLAIN[op], "channels_last", channels=48, height=9, width=7))


@pytest.mark.parametrize(("op", "form", "processors"), pairs(OPS, FORMS, (1, 16, 1000)))
def test_multiprocessors_change_nothing(op, form, processors, use, pretend_processors):
    pretend_processors(processors)
    use(Setting(64 if form == WHOLE else 16, 16, 0, form, 4, 2))
    assert_solved(make(op, OPTIONS[op], "nchw", channels=48, height=9, width=7))


@pytest.fixture
def afford(monkeypatch):
    """As many parts as one wants, where there are as many tiles."""
    return lambda parts: monkeypatch.setattr(schedule, "_affordable", lambda x, part_bytes: parts)


@pytest.mark.parametrize(("op", "parts", "form"), pairs(OPS, (1, 2, 63), (STREAM, WHOLE)))
def test_parts_change_nothing(op, parts, form, use, pretend_processors, afford):
    afford(parts)
    pretend_processors(4 * parts)
    use(Setting(16, 16, 2, form, 4, 2))
    height, width = (37, 29) if parts > 2 else (13, 29)
    problem = make(op, OPTIONS[op], "nchw", height=height, width=width)
    if "mask" in problem.operands:
        problem.operands["mask"][0, : height * width * 3 // 5] = False  # whole parts without a valid pixel
    assert_solved(problem)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("form", FORMS)
def test_parts_across_samples_change_nothing(form, parts, use, pretend_processors, afford):
    afford(parts)
    pretend_processors(1)
    use(Setting(16, 16, 2, form, 4, 2))
    options = ("shared", "num_heads", "mask")
    assert_solved(make("tokenize", options, "channels_last", height=5, width=5, batch=7))


@pytest.mark.parametrize("op", OPS)
def test_offsets_of_64_bits_change_nothing(op, monkeypatch):
    monkeypatch.setattr(maps, "_INT32", 0)
    assert_solved(make(op, OPTIONS[op], "nchw"))


@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_each_time(op):
    problem = make(op, OPTIONS[op], "nchw", height=19, width=29)
    first = problem.solve(torch.float32)
    for name, value in problem.solve(torch.float32).items():
        assert torch.equal(value, first[name]), name


def test_a_setting_unfit_for_one_form_of_a_call_is_tried_for_others(use, monkeypatch):
    monkeypatch.setattr(schedule, "_unfit", set())
    use(Setting(16, 16, 1, STREAM, 4, 1))
    problem = settings.Problem("tokenize_forward", "ieee", "channels", 16, 16, 16)
    plain = Tokenize(torch.zeros(1, 16, 32), torch.zeros(4, 32), None, None, None, 2, False)
    others = [
        plain._replace(**switch)
        for switch in (
            {"queries": torch.zeros(4, 16)},
            {"values": plain.x},
            {"offsets": torch.tensor([0, 16])},
            {"normalize": None},
            {"layer_norm_eps": 1e-5},
        )
    ]

    def fail(setting):
        raise schedule.OutOfResources(300_000, 200_000, "shared memory")

    for call in others:
        with pytest.raises(CannotRunError, match="no launch setting"):
            schedule.attempt(problem, call, fail)
        assert schedule.attempt(problem, plain, lambda setting: setting) == Setting(16, 16, 1, STREAM, 4, 1)
        with pytest.raises(CannotRunError, match="no launch setting"):
            schedule.attempt(problem, call, lambda setting: setting)


def test_every_epsilon_has_the_same_kernels():
    def constants(epsilon):
        found = []
        with schedule.observed(lambda kernel, grid, arguments, constants: found.append(constants)):
            x, queries = torch.randn(2, 35, 16), torch.randn(4, 16)
            call = Tokenize(x, queries, None, None, None, 1, True, layer_norm_eps=epsilon)
            tokens, stats = triton.tokenize(call)
            triton.tokenize_backward(
                TokenizeBackward(
                    tokens, stats, *call[:5], tokens, stats, 1, [True] * 7, layer_norm_eps=epsilon
                )
            )
        return found

    assert constants(1e-5) == constants(1e-3)
    assert constants(1e-5) != constants(None)

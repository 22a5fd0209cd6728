"""Which settings the Triton kernels are launched with, and how a call is cut. No kernel runs."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from tests._support.launch_settings import SETTINGS, pretend
from tests._support.pairs import pairs
from vt_fast.backends.contract import Tokenize
from vt_fast.backends.triton import maps, samples, schedule, settings
from vt_fast.backends.triton.settings import KEEP, STREAM, Problem, Setting, ceil_div

CALL = Tokenize(torch.empty(1), torch.empty(16, 1), None, None, None, 1, False)
KERNELS = list(samples.KERNELS.values())
KINDS = ("16", "tf32", "ieee")
ARCHITECTURES = ("none", "sm_80", "sm_86", "sm_90", "sm_100", "gfx942")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_call_has_settings_that_cover_it(kernel, kind):
    # The two kernels of project_tokenize do not take more rows: project and tokenize then run instead.
    rows = (16, 32) if kernel.startswith("project_tokenize") else (16, 48, 256)
    widths, sizes = (16, 64, 192, 320, 768, 1536, 2048), (49, 196, 60800)
    for layout, *shape in itertools.product(maps.LAYOUTS, widths, rows, sizes):
        problem = Problem(kernel, kind, layout, *shape)
        for architecture in ARCHITECTURES:
            found = settings._choices(problem, architecture, None)
            assert settings.shared_bytes(problem, found[-1]) <= 64 << 10, "the last one must fit anywhere"
            for setting in found:
                assert setting.chunk >= 16
                assert setting.tile >= 16
                assert setting.tile & (setting.tile - 1) == setting.chunk & (setting.chunk - 1) == 0


@pytest.mark.parametrize(
    ("hip", "name", "capability", "architecture"),
    [
        (None, "", (8, 0), "sm_80"),
        (None, "", (8, 9), "sm_86"),
        (None, "", (9, 0), "sm_90"),
        (None, "", (12, 0), "sm_86"),
        ("6.4", "gfx942:sramecc+:xnack-", (9, 4), "gfx942"),
        ("6.4", "gfx90a:sramecc+:xnack-", (9, 0), "gfx90a"),
        ("6.4", "gfx1100", (11, 0), "gfx1100"),
    ],
)
def test_a_devices_architecture(hip, name, capability, architecture, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    major, minor = capability
    properties = SimpleNamespace(gcnArchName=name, major=major, minor=minor)
    assert schedule._architecture(properties) == architecture


def test_warps_of_64_threads_are_half_as_many():
    problem = Problem("tokenize_forward", "16", "any", 17, 16, 9)
    wide, narrow = (settings.choices(problem, name) for name in ("gfx90a", "gfx1100"))
    assert [each.warps for each in wide] == [each.warps // 2 for each in narrow]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("channels", [16, 48, 320, 2048])
def test_programs_cover_all_channels_and_pixels(setting, channels, monkeypatch):
    pretend(monkeypatch, processors=132)
    for items, pixels in itertools.product([1, 8, 256], [49, 3136]):
        x = torch.empty(items, pixels, channels, dtype=torch.bfloat16, device="meta")
        part = 4 * 16 * channels
        cut = schedule.cut(setting, x, pixels, channels, items, items * part)
        assert cut.blocks * cut.loops * cut.own * setting.chunk >= channels
        assert (cut.blocks - 1) * cut.loops * cut.own * setting.chunk < channels
        assert cut.parts * cut.each >= pixels > (cut.parts - 1) * cut.each
        assert cut.parts == 1 or cut.each % setting.tile == 0
        assert cut.parts == 1 or cut.parts * items * part <= max(0.05 * 2 * x.numel(), 1 << 20)
        tiles = items * ceil_div(pixels, setting.tile)
        cut = schedule.cut_across(setting, x, tiles, channels, 1, part)
        assert cut.blocks * cut.loops * cut.own * setting.chunk >= channels
        assert cut.parts * cut.each >= tiles > (cut.parts - 1) * cut.each
        assert cut.parts <= 132 or cut.parts * part <= max(0.05 * 2 * x.numel(), 1 << 20)


def test_ones_own_file_comes_first(tmp_path, monkeypatch):
    problem = Problem("tokenize_forward", "16", "channels", 256, 16, 196)
    mine = Setting(16, 32, 3, STREAM, 2, 5)
    entry = {"kernel": problem.kernel, "kind": "16", "layout": "channels", "few": True}
    entry |= {"channels": 256, "rows": 16, "setting": vars(mine)}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"schema": settings.SCHEMA, "entries": [entry]}))
    monkeypatch.setenv(settings.VARIABLE, str(path))
    assert settings.choices(problem, "none")[0] == mine


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99, "entries": []}', "{}"])
def test_a_broken_file_is_an_error(text, tmp_path, monkeypatch):
    path = tmp_path / "broken.json"
    path.write_text(text)
    monkeypatch.setenv(settings.VARIABLE, str(path))
    with pytest.raises(ValueError, match=r"broken.json .* must be a file of launch settings"):
        settings.choices(Problem("project_forward", "16", "any", 17, 16, 9), "none")


def test_a_missing_file_is_an_error(monkeypatch):
    monkeypatch.setenv(settings.VARIABLE, "/nowhere/to/be/found.json")
    with pytest.raises(ValueError, match=r"found.json .* must be a file of launch settings"):
        settings.choices(Problem("project_forward", "16", "any", 18, 16, 9), "none")


def test_what_does_not_fit_is_replaced_by_what_does(monkeypatch):
    pretend(monkeypatch, shared_bytes=40 << 10)
    problem = Problem("tokenize_forward", "16", "channels", 256, 16, 196)
    large, small = Setting(64, 64, 0, KEEP, 4, 3), Setting(16, 16, 1, STREAM, 4, 1)
    monkeypatch.setattr(settings, "choices", lambda problem, architecture: [large, small])
    assert schedule.attempt(problem, CALL, lambda setting: setting) == small
    monkeypatch.setattr(settings, "choices", lambda problem, architecture: [large])
    with pytest.raises(RuntimeError, match=r"no launch setting .* fits on cpu: .* bytes of shared memory"):
        schedule.attempt(problem, CALL, lambda setting: setting)


@pytest.mark.parametrize(
    ("channels", "error"),
    [
        (255, schedule.OutOfResources(300_000, 200_000, "shared memory")),
        (254, schedule.MiscompiledError("a wrong address")),
    ],
)
def test_an_unfit_setting_is_tried_once(channels, error, monkeypatch, caplog):
    problem = Problem("tokenize_forward", "16", "channels", channels, 16, 196)
    first, second = Setting(32, 16, 1, STREAM, 4, 1), Setting(16, 16, 1, STREAM, 4, 1)
    monkeypatch.setattr(settings, "choices", lambda problem, architecture: [first, second])
    tried = []

    def run(setting):
        tried.append(setting)
        if setting == first:
            raise error
        return setting

    assert schedule.attempt(problem, CALL, run) == second
    assert schedule.attempt(problem, CALL, run) == second
    assert tried == [first, second, second]
    assert "is unfit for" in caplog.text


def test_a_new_entry_replaces_that_of_its_class():
    old = {"kernel": "a", "kind": "16", "layout": "any", "few": True, "channels": 1, "rows": 16, "value": 1}
    new, other = {**old, "value": 2}, {**old, "rows": 32}
    assert settings.merged([old, other], [new]) == [new, other]


SHAPES = [(256, 16, 196), (2048, 64, 49), (64, 16, 3136), (1024, 128, 60800)]


@pytest.mark.parametrize(("op", "kind", "shape"), pairs(list(samples.KERNELS), KINDS, SHAPES))
def test_there_is_something_to_try(op, kind, shape):
    channels, rows, _ = shape
    found = list(settings.candidates(Problem(samples.KERNELS[op], kind, "channels", *shape)))
    assert len(set(found)) == len(found)
    assert found or channels * rows > 64 << 10
    if (channels, rows) == (256, 16) and op != "project_tokenize_backward":
        assert any(setting.form == KEEP for setting in found)


@pytest.mark.parametrize(
    ("architecture", "dtype", "precision"),
    [("sm_90", "16", "tf32x3"), ("gfx942", "16", "ieee"), ("sm_90", "32", "ieee"), ("none", "16", "tf32x3")],
)
def test_logits_of_float32_factors_are_not_cut_off(architecture, dtype, precision):
    found = []
    with (
        schedule.standing_in(schedule.Traits(architecture, 132, 227 << 10)),
        schedule.observed(lambda kernel, grid, arguments, constants: found.append(constants.get("cfg"))),
    ):
        of_maps = torch.bfloat16 if dtype == "16" else torch.float32
        samples.sample("project_tokenize", of_maps, "channels", (2, 196, 64, 16), "meta")()
    assert precision == found[0].LOGIT_PRECISION

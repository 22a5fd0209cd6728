"""Results do not depend on how a call is cut into programs, tiles and chunks."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch

from tests._support.comparing import assert_solved
from tests._support.problems import OPS, make
from vt_fast.backends.triton import maps, schedule, settings
from vt_fast.backends.triton.settings import KEEP, STREAM, WHOLE, Problem, Setting, ceil_div

OPTIONS = {
    "tokenize": ("mask", "pixel_bias", "extra_values", "shared"),
    "project": ("residual", "wide", "num_heads", "token_bias", "shared"),
    "project_tokenize": ("num_heads", "token_bias"),
}
# With what the residual is x itself, keys have other lengths than queries, and nothing is shared.
PLAIN = {"tokenize": ("mask", "num_heads"), "project": (), "project_tokenize": ("mask", "pixel_bias")}

SETTINGS = [
    Setting(16, 16, 1, STREAM, 4, 2),
    Setting(16, 16, 2, STREAM, 4, 2),
    Setting(32, 16, 9, STREAM, 4, 2),
    Setting(64, 128, 1, STREAM, 4, 2),
    Setting(16, 16, 0, KEEP, 4, 2),
    Setting(64, 32, 0, KEEP, 4, 2),
    Setting(64, 16, 1, WHOLE, 4, 2),
    Setting(16, 16, 1, WHOLE, 4, 2),
    Setting(128, 32, 1, WHOLE, 4, 2),
]


@pytest.fixture
def use():
    """Every kernel is launched with this setting."""
    with contextlib.ExitStack() as stack:
        yield lambda setting: stack.enter_context(settings.using(setting))


@pytest.fixture
def pretend_processors(monkeypatch):
    """As many multiprocessors as one wants."""

    def count(number):
        pretend(monkeypatch, processors=number)

    return count


def pretend(monkeypatch, **differently):
    """Every device is as it is but for this."""
    real = schedule.traits
    monkeypatch.setattr(schedule, "traits", lambda where: real(where)._replace(**differently))


def check(problem):
    assert_solved(problem)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nchw, sliced"])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_settings_change_nothing(op, setting, layout, use, pretend_processors):
    pretend_processors(2)  # enough programs, so that each takes all channels where it can
    use(setting)
    check(make(op, OPTIONS[op], layout, channels=48, height=9, width=7))


@pytest.mark.parametrize("setting", SETTINGS[4:8], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_settings_change_nothing_where_nothing_is_shared(op, setting, use, pretend_processors):
    pretend_processors(2)
    use(setting)
    check(make(op, PLAIN[op], "channels_last", channels=48, height=9, width=7))


@pytest.mark.parametrize("processors", [1, 16, 1000])
@pytest.mark.parametrize("form", [KEEP, STREAM, WHOLE])
@pytest.mark.parametrize("op", OPS)
def test_multiprocessors_change_nothing(op, form, processors, use, pretend_processors):
    pretend_processors(processors)
    use(Setting(64 if form == WHOLE else 16, 16, 0, form, 4, 2))
    check(make(op, OPTIONS[op], "nchw", channels=48, height=9, width=7))


@pytest.mark.parametrize("form", [STREAM, WHOLE])
@pytest.mark.parametrize("parts", [1, 2, 63])
@pytest.mark.parametrize("op", OPS)
def test_parts_change_nothing(op, parts, form, use, pretend_processors, monkeypatch):
    monkeypatch.setattr(schedule, "_affordable", lambda x, part_bytes: parts)
    pretend_processors(4 * parts)
    use(Setting(16, 16, 2, form, 4, 2))
    options = OPTIONS[op]
    problem = make(op, options, "nchw", height=37, width=29, batch=2)
    if "mask" in options:
        problem.operands["mask"][0, :600] = False  # whole parts without a valid pixel
    check(problem)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("form", [KEEP, STREAM, WHOLE])
def test_parts_across_samples_change_nothing(form, parts, use, pretend_processors, monkeypatch):
    monkeypatch.setattr(schedule, "_affordable", lambda x, part_bytes: parts)
    pretend_processors(1)
    use(Setting(16, 16, 2, form, 4, 2))
    check(make("tokenize", ("shared", "num_heads", "mask"), "channels_last", height=7, width=5, batch=7))


@pytest.mark.parametrize("op", OPS)
def test_offsets_of_64_bits_change_nothing(op, monkeypatch):
    monkeypatch.setattr(maps, "_INT32", 0)
    check(make(op, OPTIONS[op], "nchw"))


@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_each_time(op):
    problem = make(op, OPTIONS[op], "nchw", height=37, width=29)
    first = problem.solve(torch.float32)
    for name, value in problem.solve(torch.float32).items():
        assert torch.equal(value, first[name]), name


KERNELS = [f"{op}_{which}" for op in OPS for which in ("forward", "backward")]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["16", "tf32", "ieee"])
@pytest.mark.parametrize("rows", [16, 48, 256])
@pytest.mark.parametrize("channels", [16, 64, 192, 320, 768, 1536, 2048])
@pytest.mark.parametrize("pixels", [49, 196, 60800])
def test_every_call_has_settings_that_cover_it(kernel, kind, rows, channels, pixels):
    if kernel.startswith("project_tokenize"):
        rows = min(rows, 32)  # the two run apart beyond
    for architecture in ("none", "sm_80", "sm_86", "sm_90", "sm_100", "gfx942"):
        for layout in maps.LAYOUTS:
            problem = Problem(kernel, kind, layout, channels, rows, pixels)
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
@pytest.mark.parametrize("items", [1, 8, 256])
@pytest.mark.parametrize("pixels", [49, 3136])
def test_programs_cover_all_channels_and_pixels(setting, channels, items, pixels, pretend_processors):
    pretend_processors(132)
    x = torch.empty(items, pixels, channels, dtype=torch.bfloat16, device="meta")
    part = 4 * 16 * channels
    cut = schedule.cut(setting, x, pixels, channels, items, items * part)
    assert cut.blocks * cut.loops * cut.own * setting.chunk >= channels
    assert (cut.blocks - 1) * cut.loops * cut.own * setting.chunk < channels
    assert cut.parts * cut.each >= pixels > (cut.parts - 1) * cut.each
    assert cut.parts == 1 or cut.each % setting.tile == 0
    assert cut.parts == 1 or cut.parts * items * part <= max(0.05 * 2 * x.numel(), 1 << 20)
    tiles = items * ceil_div(pixels, setting.tile)
    cut = schedule.cut_across(setting, x, pixels, channels, 1, part)
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
    assert schedule.attempt(problem, torch.empty(1), lambda setting: setting) == small
    monkeypatch.setattr(settings, "choices", lambda problem, architecture: [large])
    with pytest.raises(RuntimeError, match=r"no launch setting .* fits on cpu: .* bytes of shared memory"):
        schedule.attempt(problem, torch.empty(1), lambda setting: setting)


def test_a_setting_too_large_for_the_device_is_tried_once(monkeypatch, caplog):
    problem = Problem("tokenize_forward", "16", "channels", 255, 16, 196)
    first, second = Setting(32, 16, 1, STREAM, 4, 1), Setting(16, 16, 1, STREAM, 4, 1)
    monkeypatch.setattr(settings, "choices", lambda problem, architecture: [first, second])
    tried = []

    def run(setting):
        tried.append(setting)
        if setting == first:
            raise schedule.OutOfResources(300_000, 200_000, "shared memory")
        return setting

    assert schedule.attempt(problem, torch.empty(1), run) == second
    assert schedule.attempt(problem, torch.empty(1), run) == second
    assert tried == [first, second, second]
    assert "does not fit" in caplog.text

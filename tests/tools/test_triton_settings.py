"""How launch settings are chosen without a GPU, with one version of Triton or with several."""

import json

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("what is compiled for another GPU may not compile here", allow_module_level=True)

import triton

from tools.triton import offline, setting_tables
from tools.triton.__main__ import main
from tools.triton.setting_tables import Class, Trial, attempt, best, choose, load, tried
from vt_fast.backends.triton.settings import KEEP, STREAM, Setting

CLASS = Class("project", "16", "pixels", True, 256, 16)
FIRST, SLOW, FAST = Setting(16, 16, 0, KEEP, 4, 2), *(Setting(16, 16, n, STREAM, 4, 2) for n in (1, 2))


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Seconds, and shared memory or a fault, of three settings; and what is compiled."""
    becomes, asked = {FIRST: (3.0, "9 spill"), SLOW: (5.0, 7), FAST: (4.0, 8)}, []

    def stand_in(each, setting, gpu):
        asked.append(setting)
        seconds, found = becomes[setting]
        what = (
            {"fault": found}
            if isinstance(found, str)
            else {"seconds": seconds, "floor": 1.0, "shared": found}
        )
        return Trial(each, setting, triton.__version__, **what)

    class InThisProcess:
        """A pool without processes, in which the stand-in is seen."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        map = staticmethod(map)

    monkeypatch.setattr(setting_tables, "candidates", lambda problem: list(becomes))
    monkeypatch.setattr(setting_tables, "classes", lambda ops, kinds: [CLASS])
    monkeypatch.setattr(setting_tables, "FILES", tmp_path)
    monkeypatch.setattr(setting_tables, "attempt", stand_in)
    monkeypatch.setattr(offline, "processes", InThisProcess)
    return becomes, asked


def chosen(trials=None):
    (entry,) = json.loads(choose("sm_90", ["project"], ["16"], trials).read_text())["entries"]
    return Setting(**entry["setting"])


def test_a_class_gets_the_fastest_that_compiles(compiler):
    becomes, _ = compiler
    assert chosen() == Setting(16, 16, 2, STREAM, 4, 2, shared=8)
    becomes[SLOW] = becomes[FAST] = (1.0, "too much")
    assert best(tried(CLASS, "sm_90", [])) is None


def test_a_setting_that_another_triton_spills_is_not_chosen(compiler, monkeypatch, tmp_path):
    becomes, asked = compiler
    trials = tmp_path / "trials"
    monkeypatch.setattr(triton, "__version__", "old")
    becomes[FIRST], becomes[FAST] = (3.0, 9), (4.0, "1 spills")
    assert chosen(trials).form == KEEP
    assert asked == [FIRST, SLOW]
    monkeypatch.setattr(triton, "__version__", "new")
    becomes.update({FIRST: (3.0, "9 spill"), SLOW: (6.0, 5), FAST: (4.0, 8)})
    asked.clear()
    # The old version has not tried FAST. What both have tried comes first, at its slowest.
    assert chosen(trials) == Setting(16, 16, 1, STREAM, 4, 2, shared=7)
    assert asked == [FIRST, SLOW, FAST]
    slow = [trial for trial in load(trials, "sm_90") if trial.setting == SLOW]
    assert [(trial.triton, trial.seconds, trial.shared) for trial in slow] == [
        ("old", 5.0, 7),
        ("new", 6.0, 5),
    ]
    source = json.loads((tmp_path / "sm_90.json").read_text())["source"]
    assert source.startswith("compiled with Triton new and old, ")
    monkeypatch.setattr(triton, "__version__", "old")
    becomes[FAST] = (4.0, "1 spills")
    asked.clear()
    assert chosen(trials).own == 1
    assert asked == [FAST]
    with pytest.raises(ValueError, match="must be of trials for gfx942, got sm_90"):
        choose("gfx942", ["project"], ["16"], trials)


def test_settings_are_tried_by_compiling():
    each = Class("tokenize", "tf32", "pixels", True, 256, 16)
    assert each.problem.kernel == "tokenize_forward"
    before = torch.backends.cuda.matmul.allow_tf32
    trial = attempt(each, Setting(32, 32, 1, STREAM, 8, 2), "sm_90")
    assert trial.seconds > trial.floor > 0
    assert 0 < trial.shared <= 227 << 10
    assert trial.fault is None
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert attempt(each, Setting(24, 32, 1, STREAM, 8, 2), "sm_90").fault is not None


def test_classes_are_those_that_a_call_can_get():
    kept = list(setting_tables.classes(["project", "project_tokenize"], ["16", "ieee"]))
    assert len(kept) == len(set(kept)) == 20 + 12 + 8 + 8
    assert {each.rows for each in kept if each.kind == "ieee"} == {16}


def test_the_command_passes_everything_on(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(setting_tables, "choose", lambda *given: asked.append(given))
    words = ["--choose", "sm_90", "--op", "project", "--kind", "ieee", "--trials", str(tmp_path / "a")]
    assert main(["offline", *words]) == 0
    assert asked == [("sm_90", ["project"], ["ieee"], tmp_path / "a")]

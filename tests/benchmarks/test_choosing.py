"""How launch settings are chosen without a GPU, with one Triton or with several."""

import json

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("what is compiled for another GPU may not be compiled here", allow_module_level=True)

import triton

from benchmarks import choosing, offline
from benchmarks.compiled import SHARED
from benchmarks.trials import Class, Tried, load
from vt_fast.backends.triton import settings
from vt_fast.backends.triton.settings import KEEP, STREAM, Setting

CLASS = Class("project", "16", "pixels", 256, 16, True)
FIRST, SLOW, FAST = Setting(16, 16, 0, KEEP, 4, 2), *(Setting(16, 16, n, STREAM, 4, 2) for n in (1, 2))


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """What becomes of each of three settings; tables go to a folder of the test's own."""
    becomes = {FIRST: Tried(fault="9 spill"), SLOW: Tried(5.0, 1.0, 7), FAST: Tried(4.0, 1.0, 8)}
    asked = []

    def tried(each, setting, target):
        asked.append(setting)
        return becomes[setting]

    class Here:
        """Its processes: a test's stand-ins are in this one alone."""

        def __init__(self, **_):
            self.map = map

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(choosing, "candidates", lambda problem: list(becomes))
    monkeypatch.setattr(choosing, "classes", lambda ops: [CLASS])
    monkeypatch.setattr(choosing, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(choosing, "FILES", tmp_path)
    monkeypatch.setattr(choosing, "_tried", tried)
    return becomes, asked


def chosen(trials=None):
    (entry,) = json.loads(choosing.choose("sm_90", trials=trials).read_text())["entries"]
    return Setting(**entry["setting"])


def test_a_class_gets_the_best_of_what_compiles(compiler):
    becomes, _ = compiler
    assert chosen() == Setting(16, 16, 2, STREAM, 4, 2, shared=8)
    becomes[SLOW] = becomes[FAST] = Tried(fault="too much")
    assert choosing._entry(CLASS, choosing.try_out(CLASS, "sm_90", {})) is None


def test_what_another_triton_spills_is_not_chosen(compiler, monkeypatch, tmp_path):
    becomes, asked = compiler
    trials = tmp_path / "trials"
    monkeypatch.setattr(triton, "__version__", "old")
    becomes[FIRST], becomes[FAST] = Tried(3.0, 1.0, 9), Tried(fault="1 spills")
    assert chosen(trials).form == KEEP
    assert asked == [FIRST, SLOW]
    monkeypatch.setattr(triton, "__version__", "new")
    becomes[FIRST], becomes[SLOW], becomes[FAST] = (
        Tried(fault="9 spill"),
        Tried(6.0, 1.0, 5),
        Tried(4.0, 1.0, 8),
    )
    asked.clear()
    # FAST may be good or not in the old one: what both have tried is preferred, and takes the most of both.
    assert chosen(trials) == Setting(16, 16, 1, STREAM, 4, 2, shared=7)
    assert asked == [FIRST, SLOW, FAST]
    assert load(trials, "sm_90")[CLASS][SLOW] == {"old": Tried(5.0, 1.0, 7), "new": Tried(6.0, 1.0, 5)}
    source = json.loads((tmp_path / "sm_90.json").read_text())["source"]
    assert source.startswith("compiled with Triton new and old, ")
    monkeypatch.setattr(triton, "__version__", "old")
    becomes[FAST] = Tried(fault="1 spills")
    asked.clear()
    assert chosen(trials).own == 1
    assert asked == [FAST]
    with pytest.raises(ValueError, match="must be of trials for gfx942, got sm_90"):
        choosing.choose("gfx942", trials=trials)


def test_settings_are_tried_by_compiling():
    each = Class("tokenize", "tf32", "pixels", 256, 16, True)
    assert each.problem.kernel == "tokenize_forward"
    before = torch.backends.cuda.matmul.allow_tf32
    seconds, floor, shared, fault = choosing._tried(each, Setting(32, 32, 1, STREAM, 8, 2), "sm_90")
    assert seconds > floor > 0
    assert 0 < shared <= SHARED["sm_90"]
    assert fault is None
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert choosing._tried(each, Setting(24, 32, 1, STREAM, 8, 2), "sm_90").fault is not None


def test_the_command_passes_everything_on(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(choosing, "choose", lambda *given: asked.append(given))
    words = ["--choose", "sm_90", "--op", "project", "--kind", "ieee", "--trials", str(tmp_path / "a")]
    assert offline.main(words) == 0
    assert asked == [("sm_90", ["project"], ["ieee"], tmp_path / "a")]
    assert settings.FILES.is_dir()

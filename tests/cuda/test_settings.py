"""Settings as data: which classes of calls they are for, and what they change."""

import ctypes
import json

import pytest
import torch

from tests._support import cuda_emulator
from tests._support.emulated_cases import check, problem
from vt_fast.backends.cuda import settings, tuning
from vt_fast.backends.cuda.settings import Setting

pytestmark = pytest.mark.skipif(cuda_emulator.REAL, reason="looks at what the emulator reports")


@pytest.fixture
def use():
    """Puts settings into use; there are none afterwards."""
    library = cuda_emulator.library()
    yield lambda *given: settings.use(library, given)
    settings.use(library, [])


def tokenize(channels=256, **conditions):
    sizes = {"channels": channels, "height": 5, "width": 9, "tokens": 16, "batch": 1}
    return check(problem("tokenize", (), "bnc", **sizes), torch.bfloat16, **conditions)["tokenize_backward"]


def test_a_setting_is_for_its_class_alone(use):
    rules = tokenize()
    assert (rules.mt, rules.ranks) == (4, 1)
    backward = Setting("tokenize_backward", "bf16", "last", 16, 256, mt=2, ranks=2, stages=2)
    use(backward)
    found = tokenize()
    assert (found.mt, found.ranks, found.stages) == (2, 2, 2)
    for other in (
        backward._replace(op="project_backward"),
        backward._replace(dtype="fp16"),
        backward._replace(layout="first"),
        backward._replace(rows=32),
        backward._replace(channels=255),
    ):
        use(other)
        assert tokenize().mt == 4, other


def test_the_smallest_that_covers_the_channels_is_used(use):
    of = Setting("tokenize_backward", "bf16", "last", 16, 384, mt=2, ranks=1, stages=3)
    use(of._replace(channels=448, mt=8), of, of._replace(channels=128, mt=8))
    assert (tokenize(256).mt, tokenize(256).stages) == (2, 3)
    use(of._replace(channels=512))
    assert tokenize(256).mt == 4, "twice as many channels are another class"


def test_calls_are_left_to_triton_alone(monkeypatch):
    """Without it plain PyTorch would come next, which is slower."""
    assert "next" in {each.backend for each in settings.read(settings.FILE)}
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: name)
    assert "next" in {each.backend for each in settings.in_files()}
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    assert {each.backend for each in settings.in_files()} == {"cuda"}


def test_what_does_not_fit_is_ignored(use):
    use(Setting("tokenize_backward", "bf16", "last", 16, 256, mt=1, ranks=1, stages=4))
    assert tokenize().mt == 4


def test_all_candidates_compute_the_same(use):
    tried = tuning.candidates("tokenize_backward", "bf16", "channels", (1, 45, 256, 16))
    plans = set()
    for setting in tried:
        use(setting)
        report = tokenize()
        plans.add((report.mt, report.ranks, report.stages))
    assert len(plans) > 5


def test_files(tmp_path):
    path = tmp_path / "settings.json"
    first = Setting("project", "bf16", "last", 16, 256, mt=4, ranks=1, stages=3)
    second = first._replace(mt=2)
    settings.write(path, settings.merged([first], [second]), "a test")
    assert settings.read(path) == [second]
    assert settings.read(tmp_path / "none.json", required=False) == []
    settings.read(settings.FILE)  # the package's own
    for wrong, message in [
        ({"schema": 2, "entries": []}, "schema 2, not 1"),
        ({"schema": 1, "entries": [second._replace(dtype="fp64")._asdict()]}, "`dtype` must be one of fp32"),
        ({"schema": 1, "entries": [second._replace(channels=0)._asdict()]}, "`channels` must be positive"),
        ({"schema": 1, "entries": [{"tile": 1}]}, "unexpected keyword"),
    ]:
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            settings.read(path)


def test_records_are_those_of_the_library():
    assert ctypes.sizeof(settings._Record) == 4 * (len(Setting._fields))

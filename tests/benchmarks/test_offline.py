"""Kernels compiled for GPUs that are not there, the model, and how settings are chosen."""

import json

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("what is compiled for another GPU may not be compiled here", allow_module_level=True)

from benchmarks import offline, offline_options, predictions, records
from benchmarks.__main__ import main
from benchmarks.ahead import compile_all
from benchmarks.cases import FORWARD, Case, Shape
from benchmarks.compiled import SHARED, TARGETS, Compiled, Launch
from benchmarks.model import DEVICES, WALKS, predicted
from benchmarks.offline_calls import recorded
from vt_fast.backends.triton import ahead, maps, settings
from vt_fast.backends.triton.samples import KERNELS
from vt_fast.backends.triton.schedule import Traits, standing_in
from vt_fast.backends.triton.settings import KEEP, STREAM, WHOLE, Setting


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_kernel_is_compiled_for_another_gpu(target):
    row = offline.examine(offline.Job("tokenize", target, "bf16", "channels_last", (64, 196, 256, 16)))
    assert row["error"] is None
    assert row["fault"] is None
    assert row["registers"] > 16
    assert row["matrix"] > 0
    assert row["load_bytes"] >= 8
    assert 0 < row["shared"] <= SHARED[target]
    assert row["model_us"] > row["floor_us"] > 0


@pytest.mark.parametrize("op", KERNELS)
def test_every_op_has_one_kernel_that_walks_over_the_map(op):
    with standing_in(Traits("sm_90", 132, SHARED["sm_90"])):
        found = recorded(op, torch.bfloat16, "channels", (8, 196, 64, 16))
    names = [launch.kernel for launch in found]
    assert [name for name in names if name in WALKS] == [KERNELS[op]]


def test_what_is_wrong_with_a_kernel():
    assert Compiled(registers=9, spills=0, shared=SHARED["sm_86"]).fault("sm_86") is None
    assert Compiled(registers=9, spills=3, shared=0).fault("sm_90") == "3 instructions spill"
    assert "bytes of shared memory" in Compiled(registers=9, spills=0, shared=101 << 10).fault("sm_86")
    assert Compiled(error="OutOfLuck: no").fault("sm_90") == "OutOfLuck: no"


@pytest.fixture
def launch():
    """tokenize on maps of 100 MB."""
    with standing_in(Traits("sm_90", 132, 1 << 30)), settings.using(Setting(64, 64, 0, KEEP, 4, 3)):
        found = recorded("tokenize", torch.bfloat16, "channels", (256, 196, 1024, 16))
    (launch,) = (each for each in found if each.kernel in WALKS)
    return launch


def test_the_model_knows_what_is_slower(launch):
    def seconds(registers=128, shared=64 << 10, target="sm_90", kind="16"):
        compiled = Compiled(registers=registers, spills=0, shared=shared)
        return predicted(DEVICES[target], launch, compiled, (256, 196, 1024, 16), kind)

    usual = seconds()
    assert usual.seconds > usual.memory >= 256 * 196 * 1024 * 2 / DEVICES["sm_90"].memory
    assert usual.programs_each == 3
    assert seconds(shared=200 << 10).programs_each == 1
    assert seconds(registers=255).programs_each == 2
    assert seconds(shared=200 << 10).seconds > usual.seconds, "fewer programs wait longer"
    assert seconds(target="sm_86").seconds > usual.seconds
    assert seconds(target="sm_100").seconds < usual.seconds


@pytest.mark.parametrize("path", sorted(settings.FILES.glob("*.json")), ids=lambda path: path.stem)
def test_the_shipped_tables(path):
    entries = settings.read(path, required=True)
    seen = set()
    for entry in entries:
        setting = Setting(**entry["setting"])
        assert setting.form in (KEEP, STREAM, WHOLE)
        assert entry["kernel"] in WALKS
        assert entry["layout"] in maps.LAYOUTS
        assert 0 < setting.shared <= SHARED[path.stem]
        key = tuple(entry[name] for name in ("kernel", "kind", "layout", "few", "channels", "rows"))
        assert key not in seen
        seen.add(key)
    if path.stem == "sm_90":  # the others hide entries of this one
        assert {entry["kernel"] for entry in entries} == set(WALKS)


def test_the_committed_table_is_of_all_targets_and_ops():
    table = json.loads(offline.TABLE.read_text())["rows"]
    assert {row["target"] for row in table} == set(DEVICES)
    assert {row["op"] for row in table} == set(KERNELS)
    assert not [row["label"] for row in table if row["error"]]


def test_predictions_stand_beside_measurements(capsys):
    row = {
        "op": "tokenize", "shape": "8x196x64x16", "dtype": "bf16", "layout": "nchw", "setting": "keep",
        "floor_us": 1.0, "model_us": 2.5, "error": None, "target": "sm_90",
        "model_terms_us": {"memory": 1.0, "cache": 0.5, "products": 0.2, "waiting": 0.1},
    }  # fmt: skip
    rows = [row, {**row, "op": "tokenize_backward"}, {**row, "op": "project"}]

    def cell(which, seconds):
        entry = records.Entry("vt_fast triton", records.OURS, seconds=[seconds])
        return records.Cell(
            "tokenize", Shape(8, 14, 14, 64, 16), "bf16", "nchw", 0, which, 1, None, [entry]
        )  # fmt: skip

    run = records.Run({}, {}, [cell("forward", 3e-6), cell("forward+backward", 8e-6)])
    lines = predictions.render(rows, run).splitlines()
    assert [line.split()[-1] for line in lines] == ["measured", "3.0", "5.0", "-"]
    assert "2.5" in lines[1]
    assert main(["predict"]) == 0
    assert "tokenize 256x196x1024x16 bf16 nchw" in capsys.readouterr().out
    assert main(["predict", "--target", "sm_1"]) == 2
    assert "`target` must be one of" in capsys.readouterr().err


def test_a_launch_says_what_was_chosen(launch):
    assert isinstance(launch, Launch)
    assert launch.options == {"num_warps": 4, "num_stages": 3}
    assert launch.constants["CHANNELS"] == 1024
    assert launch.setting == "tile=64 chunk=64 keep warps=4 stages=3"


@pytest.mark.parametrize("options", [options for op, options in offline_options.COVER if op == "tokenize"])
def test_calls_with_options_launch_forward_and_backward(options):
    job = offline_options.Options("tokenize", options, torch.bfloat16, "sm_90")
    with standing_in(Traits("sm_90", 132, 227 << 10)):
        launches = list(offline_options._launches(job))
    names = [launch.kernel for launch in launches]
    assert {"tokenize_forward", "tokenize_backward", "deltas"} <= set(names)
    assert all(
        launch.constants["INT64"] == ("huge" in options) for launch in launches if "INT64" in launch.constants
    )


def test_calls_with_options_that_do_not_compile_are_told(monkeypatch):
    monkeypatch.setattr(offline_options, "examined", lambda *_: Compiled(error="no such thing"))
    job = offline_options.Options("project", frozenset(), torch.bfloat16, "sm_90")
    told = offline_options.faults(job)
    assert told
    assert all("no such thing" in fault for fault in told)


def test_a_runs_cases_are_compiled_ahead(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ahead, "current_target", lambda: TARGETS["sm_90"])
    shape = Shape(2, 4, 5, 32, 4)
    todo = [Case("tokenize", shape, "fp16", "nchw"), Case("stack", shape, "fp16", "nchw")]
    compile_all(todo, [FORWARD], torch.device("cpu"))
    assert "0 of 1 launches failed" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1

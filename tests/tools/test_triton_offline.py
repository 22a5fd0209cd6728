"""Kernels compiled for GPUs that are not there, the time model, and predictions."""

import itertools
import json

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("what is compiled for another GPU may not compile here", allow_module_level=True)

from benchmarks import results
from tools.triton import offline, optional_calls
from tools.triton.__main__ import main
from tools.triton.calls import UNIT_STRIDES, Call, launches
from tools.triton.compiled import Compiled
from tools.triton.gpus import GPUS
from tools.triton.model import WALKS, compulsory_bytes, predict
from vt_fast.backends.triton import maps, settings
from vt_fast.backends.triton.ahead import Request
from vt_fast.backends.triton.compiling import MiscompiledError
from vt_fast.backends.triton.samples import KERNELS
from vt_fast.backends.triton.schedule import standing_in
from vt_fast.backends.triton.settings import KEEP, STREAM, WHOLE, Setting

CALL = Call("tokenize", "bf16", "channels_last", (256, 196, 1024, 16))


@pytest.mark.parametrize("gpu", ["sm_90", "gfx942"])
def test_a_kernel_is_compiled_for_another_gpu(gpu):
    row = offline.row(gpu, CALL._replace(shape=(64, 196, 256, 16)))
    assert row["error"] is None
    assert row["fault"] is None
    assert row["registers"] > 16
    assert row["matrix"] > 0
    assert row["load_bytes"] >= 8
    assert 0 < row["shared"] <= GPUS[gpu].program_shared_bytes
    assert row["total_us"] > row["floor_us"] > 0
    assert offline.label(row) == f"tokenize {gpu} bf16 channels_last 64x196x256x16"


def test_a_compilers_error_is_a_fault(monkeypatch):
    def fail(self):
        raise LookupError("no\n  such thing")

    monkeypatch.setattr(Request, "compiled", fail)
    row = offline.row("sm_90", CALL)
    assert row["fault"] == row["error"] == "LookupError: no such thing"
    assert "total_us" not in row


def test_a_setting_that_is_miscompiled_is_passed_over(monkeypatch):
    with standing_in(GPUS["sm_90"].traits):
        first = CALL.main_launch()
    compiled = Request.compiled

    def fails_once(self):
        if self.constants == first.request.constants and self.name == first.kernel:
            raise MiscompiledError("wrong addresses")
        return compiled(self)

    monkeypatch.setattr(Request, "compiled", fails_once)
    row = offline.row("sm_90", CALL)
    assert row["error"] is None
    assert row["setting"] != first.setting
    monkeypatch.undo()
    assert offline.row("sm_90", CALL)["setting"] == first.setting


@pytest.mark.parametrize("op", KERNELS)
def test_every_op_has_one_kernel_that_walks_over_the_map(op):
    call = CALL._replace(op=op)
    with standing_in(GPUS["sm_90"].traits):
        names = [launch.kernel for launch in call.launches()]
        assert call.main_launch().kernel == KERNELS[op]
    assert [name for name in names if name in WALKS] == [KERNELS[op]]
    maps_moved = {"tokenize": 1, "project_backward": 3, "project_tokenize_backward": 3}.get(op, 2)
    assert compulsory_bytes(KERNELS[op], call) == maps_moved * 2 * 256 * 196 * 1024
    assert compulsory_bytes("combine", call) is None


def test_faults():
    small = GPUS["sm_86"]
    assert Compiled(registers=9, spills=0, shared=99 << 10).fault(small) is None
    assert Compiled(registers=9, spills=3, shared=0).fault(small) == "3 instructions spill"
    assert "bytes of shared memory" in Compiled(registers=9, spills=0, shared=101 << 10).fault(small)
    assert Compiled(error="OutOfLuck: no").fault(small) == "OutOfLuck: no"


@pytest.fixture
def launch():
    """tokenize on maps of 100 MB."""
    traits = GPUS["sm_90"].traits._replace(shared_bytes=1 << 30)
    with standing_in(traits), settings.using(Setting(64, 64, 0, KEEP, 4, 3)):
        return CALL.main_launch()


def test_a_launch_names_its_setting(launch):
    assert launch.options == {"num_warps": 4, "num_stages": 3}
    assert launch.constants["CHANNELS"] == 1024
    assert launch.setting == "tile=64 chunk=64 keep warps=4 stages=3"


def test_the_model_ranks_what_is_slower(launch):
    def predicted(registers=128, shared=64 << 10, gpu="sm_90"):
        return predict(GPUS[gpu], launch, Compiled(registers=registers, spills=0, shared=shared), CALL)

    usual = predicted()
    assert usual.total > usual.memory >= usual.floor == 256 * 196 * 1024 * 2 / GPUS["sm_90"].memory
    assert usual.programs_each == 3
    assert predicted(shared=200 << 10).programs_each == 1
    assert predicted(registers=255).programs_each == 2
    assert predicted(shared=200 << 10).total > usual.total, "fewer programs wait longer"
    assert predicted(gpu="sm_86").total > usual.total > predicted(gpu="sm_100").total


@pytest.mark.parametrize("path", sorted(settings.FILES.glob("*.json")), ids=lambda path: path.stem)
def test_the_shipped_settings(path):
    entries = settings.read(path, required=True)
    seen = set()
    for entry in entries:
        setting = Setting(**entry["setting"])
        assert setting.form in (KEEP, STREAM, WHOLE)
        assert entry["kernel"] in WALKS
        assert entry["layout"] in maps.LAYOUTS
        assert 0 < setting.shared <= GPUS[path.stem].program_shared_bytes
        key = tuple(entry[name] for name in ("kernel", "kind", "layout", "few", "channels", "rows"))
        assert key not in seen
        seen.add(key)
    if path.stem == "sm_90":  # the others hide entries of this one
        assert {entry["kernel"] for entry in entries} == set(WALKS)


def test_the_committed_table():
    facts, rows = results.read(offline.TABLE)
    assert facts["triton"]
    assert {(row["gpu"], row["op"]) for row in rows} == {(gpu, op) for gpu in GPUS for op in KERNELS}
    assert not [offline.label(row) for row in rows if row["error"]]
    labels = {offline.label(row) for row in rows}
    excused = [name for names in json.loads(offline.EXCUSES.read_text()).values() for name in names]
    assert set(excused) <= labels
    assert {offline.label(row) for row in rows if row["fault"]} <= set(excused)


def test_the_committed_table_of_calls_with_options():
    """Every switch of the op family is in it, forward and backward."""
    facts, rows = results.read(offline.optional_table(offline.TABLE))
    assert facts["triton"]
    assert not [optional_calls.label(row) for row in rows if row["fault"]]
    assert all(map(offline.kept, rows))
    found = {(row["op"], row["options"], row["dtype"]) for row in rows}
    assert found == {(*call, dtype) for call in optional_calls.COVER for dtype in offline.DTYPES}
    for op, options in optional_calls.COVER:
        kernels = {row["kernel"] for row in rows if (row["op"], row["options"]) == (op, options)}
        assert {KERNELS[op], KERNELS[f"{op}_backward"]} <= kernels or "many_tokens" in options


class InThisProcess:
    """A pool without processes, so that a test's replacements are seen."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    map = staticmethod(map)


@pytest.fixture
def faulty(monkeypatch, tmp_path):
    """Every kernel spills."""
    monkeypatch.setattr(offline, "processes", InThisProcess)
    monkeypatch.setattr(offline, "compiled", lambda *_: Compiled(registers=9, spills=2, shared=0))
    monkeypatch.setattr(optional_calls, "compiled", lambda *_: Compiled(spills=2))
    monkeypatch.setattr(offline, "EXCUSES", tmp_path / "excuses.json")
    shapes = ("256x196x1024x16", "8x60800x256x8")
    names = itertools.product(["tokenize sm_90"], offline.DTYPES, UNIT_STRIDES, shapes)
    labels = list(map(" ".join, names))
    offline.EXCUSES.write_text(json.dumps({"a reason": labels}))
    return labels


def test_a_fault_needs_an_excuse(faulty, monkeypatch, tmp_path, capsys):
    words = ["offline", "--op", "tokenize", "--gpu", "sm_90", "--output", str(tmp_path / "table.csv")]
    assert main([*words, "--check"]) == 0
    assert "8 kernels, 8 with a fault, 0 of them without an excuse" in capsys.readouterr().out
    assert not (tmp_path / "table.csv").exists()
    offline.EXCUSES.write_text(json.dumps({"a reason": faulty[1:]}))
    assert main([*words, "--check"]) == 1
    assert f"FAULT: {faulty[0]} [tile=" in capsys.readouterr().out
    assert main(words) == 0
    assert len(results.read(tmp_path / "table.csv")[1]) == 16
    optional = results.read(tmp_path / "table-optional.csv")[1]
    assert {row["kernel"] for row in optional} == {KERNELS["tokenize"], KERNELS["tokenize_backward"]}
    offline.EXCUSES.write_text(json.dumps({"a reason": faulty}))
    monkeypatch.setattr(optional_calls, "compiled", lambda *_: Compiled(error="no such thing"))
    assert main([*words, "--check"]) == 1
    assert "FAULT: tokenize sm_90 bf16 shared mask pixel_bias" in capsys.readouterr().out


def test_a_part_does_not_replace_the_table(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["offline", "--op", "tokenize"])
    assert "`--output` must be given for a part of the table" in capsys.readouterr().err


@pytest.mark.parametrize(("op", "options"), optional_calls.COVER)
def test_calls_with_options_launch_forward_and_backward(op, options):
    with standing_in(GPUS["sm_90"].traits):
        found = launches(optional_calls.forward_and_backward(op, options.split(), torch.bfloat16))
    ops = ("project", "tokenize") if "many_tokens" in options else (op,)
    expected = {KERNELS[f"{each}{suffix}"] for each in ops for suffix in ("", "_backward")}
    assert expected == {launch.kernel for launch in found} & set(WALKS)
    wide = {launch.constants["INT64"] for launch in found if "INT64" in launch.constants}
    assert wide == {"huge" in options}


def test_predictions_stand_beside_measurements(tmp_path, capsys):
    facts = {"machine": {}, "settings": {}, "commit": None, "complete": True, "problems": []}
    key = {"mode": "ops", "case": "tokenize", "shape": "256x196x1024x16", "dtype": "bf16", "layout": "nchw"}
    ours = {"contender": "vt_fast triton", "role": "ours"}
    row = results.Row(**key, **ours, which="forward", clock="graph", median=3e-6)
    both = {"which": "forward+backward", "median": 8e-6}

    def predicted(*changes):
        rows = [results.msgspec.structs.replace(row, **change) for change in changes]
        results.save(results.Run(facts, rows), tmp_path / "gpu.csv")
        status = main(["predict", "--measured", str(tmp_path / "gpu.csv")])
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return status, {
            line[0]: line[-1] for line in lines if line[1:4] == ["256x196x1024x16", "bf16", "nchw"]
        }

    calls = {"clock": "calls", "median": 5e-6}
    status, found = predicted({}, both, calls)
    assert status == 0
    assert found["tokenize"] == "3.0", "graphs count before plain calls"
    assert found["tokenize_backward"] == "5.0"
    assert found["project"] == "-"
    assert predicted({}, {**both, **calls})[1]["tokenize_backward"] == "-", "not of two clocks"
    with pytest.raises(SystemExit, match="2"):
        predicted({"clock": "wall"})
    assert "must have times of vt_fast on a GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--gpu", "sm_1"])
    assert "`gpu` must be one of gfx942, sm_100" in capsys.readouterr().err

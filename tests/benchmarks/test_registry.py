"""What is measured, and against what."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import attention, check, inputs, peers, processes, shapes
from benchmarks.shapes import Case, Shape
from tests._support.measuring import plans

FOLDER = Path(shapes.__file__).parent


def test_a_run_on_a_cpu_has_the_standard_cells_and_all_peers(monkeypatch):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    found = []
    for plan in plans("cpu"):
        for spec in plan.problems:
            case, threads = Case.of(spec), len(plan.cpus)
            assert spec["peers"] == peers.names("cpu")
            named = f"{case.label} %s, {threads} thread{'s' * (threads > 1)}"
            found += [named % which for which in spec["passes"] if case.op != shapes.STACK]
    listed = (FOLDER / "cells.txt").read_text().splitlines()
    assert len(listed) == 288
    assert sorted(found) == sorted(listed)
    assert list(peers.listing()) == (FOLDER / "peers.txt").read_text().splitlines()


def test_a_run_on_a_gpu_begins_with_what_matters_most():
    (plan,) = plans("gpu --budget 2")
    cases = [Case.of(spec) for spec in plan.problems]
    assert (plan.seconds, plan.compile_seconds, plan.device) == (120.0, 120.0, "cuda:0")
    assert len(cases) == len(set(cases)) == (9 * 3 + 1) * 3 * 2
    assert [case.dtype for case in cases] == sorted((c.dtype for c in cases), key=shapes.GPU_DTYPES.index)
    assert cases[0].shape.label == "256x196x1024x16"
    assert [case.op for case in cases].index(shapes.STACK) == 3 * 3 * 2
    # the layouts of a case, which share their numbers, are neighbours
    assert all(one[:3] == two[:3] for one, two in zip(cases[::2], cases[1::2], strict=True))


@pytest.mark.parametrize("words", ["ops --tf32", "ops --dtype fp16", "ops --threads 1000", "gpu --threads 1"])
def test_options_that_do_not_fit_are_refused(words):
    with pytest.raises(processes.UsageError, match="--"):
        plans(words)


def test_peers_of_a_run_can_be_chosen():
    assert "autotune eager" in plans("gpu --max-autotune")[0].problems[0]["peers"]
    assert "compile flex" not in plans("ops --peers plain")[0].problems[0]["peers"]
    assert plans("ops --quick")[0].problems[0]["peers"] == peers.names("cpu", plain=True)


def test_points_of_series():
    found = shapes.points("cpu", "fp32", "nchw", 2, ops=["tokenize"])
    base = shapes.Point(Case("tokenize", Shape(1, 224, 224, 256, 16), "fp32", "nchw"), 2)
    assert found[base] == "N=50176 L=16 C=256 B=1 threads=2"
    assert {point.threads for point in found} == {1, 2}
    assert sum("chunks=" in series for series in found.values()) == 5
    on_gpu = shapes.points("cuda", "bf16", "nchw", None, only=["threads", "modules"])
    assert {(point.case.op, point.threads) for point in on_gpu} == {(shapes.STACK, None)}


def worst_error(op, layout, code):
    case = Case(op, Shape(2, 4, 5, 16, 4), "fp32", layout)
    drawn, arriving = inputs.draw(case)
    operands = [inputs.lay_out(drawn[name], name, case) for name in peers.operands_of(op)]
    found = zip(arriving, code(*operands), strict=True)
    return max(check.errors(check.solve(op, drawn, arriving), found).values())


@pytest.mark.parametrize("layout", shapes.LAYOUTS)
@pytest.mark.parametrize("op", ["tokenize", "project"])
def test_flex_attention_computes_the_op(op, layout):
    assert worst_error(op, layout, attention.by(attention.flex()).code(op)) < 1e-5


@pytest.mark.parametrize("op", shapes.OPS)
def test_a_package_takes_part_where_it_is_installed(monkeypatch, op):
    def flash_attn_func(queries, keys, values, softmax_scale):
        assert all(each.is_contiguous() and each.shape[2] == 1 for each in (queries, keys, values))
        found = attention._attend(softmax_scale * queries[:, :, 0], keys[:, :, 0], values[:, :, 0])
        return found.unsqueeze(2)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    absent = attention.absent.__wrapped__(True)
    assert "flash-attn" not in absent
    assert "No module named" in absent["natten"]
    (peer,) = (each for each in peers.PEERS[op] if each.name == "flash-attn")
    assert worst_error(op, "nchw", peer.code) < 1e-5

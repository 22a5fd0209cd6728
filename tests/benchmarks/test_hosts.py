"""Libraries as problems: a module and its patched self compute the same, and a missing library has a row."""

import sys

import pytest
import torch

from benchmarks import hosts
from benchmarks.devices import Device
from benchmarks.modules import INFERENCE
from benchmarks.results import OK, UNAVAILABLE
from benchmarks.shapes import BOTH
from tests._support.measuring import measured, plans, reported
from tools.torchvision import load_torchvision

FEW = ("siglip-head", "timm-head", "vit-b")
EVERY = [pytest.param(name, marks=() if name in FEW else pytest.mark.hosts) for name in hosts.LIBRARIES]


def made(name, dtype="fp32", passes=hosts.PASSES, peers=()):
    spec = {"host": name, "quick": True, "dtype": dtype, "passes": passes, "peers": peers}
    return hosts.problem(spec, Device())


@pytest.mark.parametrize("name", EVERY)
def test_both_sides_compute_the_same(name):
    problem = made(name, "fp64")
    original, ours = problem.contenders
    assert (original.name, ours.name) == ("original", "vt_fast")
    assert problem.passes[0] == INFERENCE
    for which in problem.passes:
        exact = [value.detach() for value in problem.call(original, which)()]
        largest = max(float(each.norm()) for each in exact)
        for value, expected in zip(problem.call(ours, which)(), exact, strict=True):
            assert (value.detach() - expected).norm() <= 1e-10 * max(largest, 1.0), which


def test_passes_its_gate():
    found = measured(made("siglip-head", peers=("original",)))
    assert {key: row.status for key, row in found.items()} == {
        (name, which): OK for name in ("original", "vt_fast") for which in (INFERENCE, BOTH)
    }


def test_a_library_that_is_missing_has_a_row(monkeypatch):
    load_torchvision()
    monkeypatch.setitem(sys.modules, "transformers", None)
    (row,) = measured(made("siglip-head", passes=[INFERENCE])).values()
    assert (row.contender, row.status) == ("original", UNAVAILABLE)
    assert "transformers" in row.reason


def test_what_is_not_replaced_is_an_error():
    host = hosts.Host(lambda: torch.nn.Linear(2, 2), ((3, 2),))
    with pytest.raises(RuntimeError, match="nothing was replaced: No module"):
        hosts.comparison(host).sides["vt_fast"].make()


def test_ours_is_compiled_where_that_is_wanted():
    for peers, names in {
        ("original",): ["original", "vt_fast"],
        hosts.PEERS: ["original", "compile original", "vt_fast", "compile vt_fast"],
        None: ["original", "vt_fast"],  # a quick run
    }.items():
        assert [each.name for each in made("siglip-head", peers=peers).contenders] == names
    found = measured(made("siglip-head", passes=[INFERENCE], peers=hosts.PEERS))
    assert {name: (row.role, row.status) for (name, _), row in found.items()} == {
        "original": ("peer", OK),
        "compile original": ("peer", OK),
        "vt_fast": ("ours", OK),
        "compile vt_fast": ("backend", OK),
    }


@pytest.mark.parametrize(("name", "series"), [("siglip-head", "module"), ("vit-b", "whole model")])
def test_rows_say_what_is_a_whole_model(name, series):
    assert made(name).fields["series"] == series


@pytest.mark.hosts  # takes seconds to start
def test_in_a_child_process():
    (plan,) = plans("hosts --host siglip-head --pass inference --quick --threads 1 --peers original")
    rows = reported(plan)
    assert [(row.mode, row.contender, row.status) for row in rows] == [
        ("hosts", "vt_fast", OK),
        ("hosts", "original", OK),
    ]

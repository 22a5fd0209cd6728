"""The benchmark of networks: the sides that are compared, the gate, and the command, on tiny networks."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from tests._support import standin

pytest.importorskip("tqdm")

from benchmarks import cli, launch
from benchmarks.device import Device
from benchmarks.networks import gate, measuring, records, report
from benchmarks.networks.cases import CLASSIFIER, KINDS, STAGE, Case, Tokens, cases
from benchmarks.networks.measuring import NetworkCell, Side
from benchmarks.networks.sides import (
    CONVOLUTIONAL,
    FUSED,
    INFERENCE,
    PASSES,
    REFERENCE,
    SIDES,
    TRAINING,
    argument,
    module,
    step,
)
from benchmarks.timing import QUICK
from vt_fast.nn import VisualTransformerStack

TINY = Case(
    STAGE,
    "tiny stage",
    lambda: nn.Conv2d(16, 32, 3, padding=1),
    lambda: Tokens(VisualTransformerStack(16, 2, num_tokens=4, last_projector=False)),
    "",
    2,
    ((16, 5, 6),),
    ((16, 4, 4),),
)
CPU = torch.device("cpu")


def rendered(*cells, about=standin.MACHINE, device="cpu", **changes):
    settings = standin.NETWORK_SETTINGS | {"device": device}
    return report.render(records.NetworkRun(about, settings, list(cells), **changes))


def test_every_kind_has_cases_in_full_and_quick():
    for quick in (False, True):
        found = list(cases(quick))
        assert {case.kind for case in found} == set(KINDS)
        assert len({case.name for case in found}) == len(found)
    assert len(list(cases())) == 12


def test_sides_have_the_same_parameters_and_none_that_do_nothing():
    written, fused = (module(TINY, side, CPU, torch.float32) for side in (REFERENCE, FUSED))
    for one, other in zip(written.parameters(), fused.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.dim() < 2 or one.any()


def test_a_training_step_changes_no_weight_and_leaves_no_gradient():
    made = module(TINY, FUSED, CPU, torch.float32)
    given = argument(TINY.inputs, 2, False, CPU, torch.float32)
    before = [parameter.clone() for parameter in made.parameters()]
    train = step(made, given, TRAINING)
    train()
    train()
    assert given.grad is None
    for parameter, old in zip(made.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None


def test_all_passes_are_measured():
    found = list(measuring.measure(TINY, "fp32", "nchw", PASSES, SIDES[:2] + SIDES[3:], Device(1), QUICK))
    assert [cell.which for cell in found] == list(PASSES)
    for cell in found:
        assert [side.name for side in cell.sides] == [CONVOLUTIONAL, REFERENCE, FUSED]
        for side in cell.sides:
            assert side.reason is None
            assert len(side.seconds) == 3
            assert side.peak_bytes > 0
        assert cell.side(FUSED).macs <= cell.side(REFERENCE).macs
        assert cell.side(CONVOLUTIONAL).macs == 2 * 30 * 9 * 16 * 32


def test_a_wrong_result_gets_no_figure(monkeypatch):
    real = gate.module

    def wrong(case, side, device, dtype):
        made = real(case, side, device, dtype)
        if side == FUSED:
            made.register_forward_hook(lambda _module, _given, result: result * 1.001)
        return made

    monkeypatch.setattr(gate, "module", wrong)
    (cell,) = measuring.measure(TINY, "fp32", "nchw", (INFERENCE,), (CONVOLUTIONAL, FUSED), Device(1), QUICK)
    (_, side) = cell.sides
    assert side.seconds == []
    assert side.reason.startswith("result: relative error 0.001")
    assert "no figure: result" in rendered(cell)


def test_a_side_that_fails_is_named(monkeypatch):
    def fails(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(measuring, "step", fails)
    (cell,) = measuring.measure(TINY, "fp32", "nchw", (INFERENCE,), (CONVOLUTIONAL,), Device(1), QUICK)
    assert cell.sides[0].reason == "RuntimeError: out of luck"


def test_goals():
    def cell(kind, ours, which=INFERENCE):
        sides = [Side(CONVOLUTIONAL, 1, [2.0], 1), Side(FUSED, 1, [ours], 1)]
        return NetworkCell(kind, "thing", 1, "fp32", "nchw", 1, which, sides)

    text = rendered(cell(STAGE, 1.0), cell(STAGE, 4.0), cell("neck", 1.0), cell(CLASSIFIER, 9.0))
    assert text.count("MISSED") == 2
    assert text.count("met ") == 1


def test_the_head_names_what_was_measured_and_what_went_wrong():
    about = standin.GPU_MACHINE
    text = rendered(about=about, device="cuda", complete=False, problems=["one: failed"])
    assert text.startswith("Stand-in 9000, 80 GiB")
    assert "This run was not finished." in text
    assert "Problem: one: failed" in text
    assert rendered().startswith("none, 1 cores")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "models-cpu.json"),
        (["--threads", "1"], "models-partial.json"),
        (["--quick"], "models-partial.json"),
        (["--only", "FPN"], "models-partial.json"),
    ],
)
def test_only_a_full_run_writes_over_the_result_of_one(monkeypatch, tmp_path, words, name):
    monkeypatch.setattr(launch, "messages", lambda plan, cpus: iter(()))
    cli.main(["models", "--results", str(tmp_path), *words])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_ctrl_c_saves_what_was_measured(monkeypatch, tmp_path):
    def stops(plan, cpus):
        (cell,) = measuring.measure(TINY, "fp32", "nchw", (INFERENCE,), (FUSED,), Device(1), QUICK)
        yield {"case": "one", "total": 2, "cells": [dataclasses.asdict(cell)]}
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "messages", stops)
    assert cli.main(["models", "--output", str(tmp_path / "models.json")]) == 130
    run = records.load(tmp_path / "models.json")
    assert (run.complete, run.problems, len(run.cells)) == (False, [], 1)


def test_the_command(tmp_path, capsys):
    output = tmp_path / "models.json"
    assert cli.main(["models", "--quick", "--kind", "stage", "--threads", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    data = json.loads(output.read_text())
    assert data["complete"]
    assert data["machine"]["commit"] is None or len(data["machine"]["commit"]["hash"]) == 40
    assert len(data["cells"]) == 2
    assert cli.main(["show", str(output)]) == 0
    assert capsys.readouterr().out.strip() in printed
    assert cli.main(["models", "--threads", "100000"]) == 2

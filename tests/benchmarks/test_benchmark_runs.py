"""Gate, timing, records and the command line, on tiny shapes."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import standin
import torch

pytest.importorskip("tqdm")

from benchmarks import (
    admission,
    cases,
    ceilings,
    cli,
    everything,
    gate,
    launch,
    measuring,
    ops,
    peers,
    records,
    report,
    running,
    summary,
    timing,
    truth,
)
from benchmarks.contenders import Contender
from benchmarks.trial import Trial, pose

SHAPE = cases.Shape(2, 4, 5, 16, 4)


def trial(op="project", dtype="fp32", layout="nchw", wanted=("folded",)):
    case = cases.Case(op, SHAPE, dtype, layout)
    return Trial(case, pose(case), wanted)


def cells(some_trial, passes=cases.PASSES):
    tops = ceilings.Ceilings(some_trial.case.dtype, quick=True)
    return list(measuring.measure(some_trial, passes, tops, timing.QUICK))


def entry_of(cell, name):
    return next(entry for entry in cell.entries if entry.name == name)


def off_by(factor, in_backward=False):
    class Slip(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * factor

    def wrong(x, keys, values):
        (y,) = peers.project_folded(Slip.apply(x) if in_backward else x, keys, values)
        return (y if in_backward else y * factor,)

    return wrong


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("kind", [records.OURS, records.PEER])
def test_gate_refuses_a_wrong_contender(kind, in_backward):
    some = trial()
    names = ("x", "keys", "values")
    some.contenders.append(Contender("slip", kind, off_by(1.001, in_backward), names))
    forward, both = cells(some)
    if not in_backward:
        assert entry_of(forward, "slip").status == records.WRONG
    entry = entry_of(both, "slip")
    assert entry.status == records.WRONG
    assert entry.seconds == []
    assert not entry.timed
    assert ("dx" if in_backward else "map") in entry.reason
    assert "wrong" in report.render(records.Run(standin.MACHINE, {}, [both]))
    assert entry_of(both, "folded").timed


def test_gate_refuses_nan_shapes_and_forgotten_pixels():
    def not_a_number(x, keys, values):
        (y,) = peers.project_folded(x, keys, values)
        return (torch.where(torch.arange(y.shape[3]) == 1, torch.nan, y),)

    def short(x, keys, values):
        return (peers.project_folded(x, keys, values)[0][:, :, :-1],)

    some = trial()
    for function in (not_a_number, short):
        some.contenders.append(Contender(function.__name__, records.PEER, function, ("x", "keys", "values")))
    (cell,) = cells(some, [cases.FORWARD])
    for name in ("not_a_number", "short"):
        assert entry_of(cell, name).status == records.WRONG
        assert entry_of(cell, name).errors["map"] == math.inf


def test_a_wrong_yardstick_is_no_yardstick(monkeypatch):
    some = trial()
    index = next(i for i, c in enumerate(some.contenders) if c.name == "folded")
    some.contenders[index] = some.contenders[index]._replace(function=off_by(1.1))
    with pytest.raises(RuntimeError, match="the yardstick is wrong"):
        cells(some)


def test_a_yardstick_that_has_lost_its_digits_in_long_sums_measures_nobody():
    values = {"tokens": torch.ones(1, 4, 16, dtype=torch.float64), "dx": torch.ones(1, 2, 16)}
    exact = truth.Truth(values, 0.0)
    long, short = (
        cases.Case("tokenize", cases.Shape(1, side, side, 16, 4), "fp32", "nchw") for side in (2048, 8)
    )
    assert gate.Gate.make(long, exact, {"tokens": 1e-4}).yardstick == {"tokens": 1e-4}
    for name in values:
        found = gate.Gate.make(long, exact, {name: 1e-3})
        assert found.yardstick == {"tokens": 0.0, "dx": 0.0}
    (allowed,) = found.allowed(["tokens"], gate.PEERS).values()
    assert "off by" in gate.complaint({"tokens": 1e-3}, {"tokens": allowed})
    assert gate.complaint({"tokens": 1e-6}, {"tokens": allowed}) is None
    with pytest.raises(RuntimeError, match="the yardstick is wrong"):
        gate.Gate.make(short, exact, {"tokens": 1e-3})


def test_one_that_fails_or_cannot_be_compiled_says_so():
    def fails(x, keys, values):
        raise ZeroDivisionError("on purpose\nand more")

    some = trial()
    names = ("x", "keys", "values")
    some.contenders += [
        Contender("fails", records.PEER, fails, names),
        Contender("compile fails", records.PEER, fails, names, compiled=True),
    ]
    (cell,) = cells(some, [cases.FORWARD])
    assert entry_of(cell, "fails").status == records.FAILED
    assert entry_of(cell, "compile fails").status == records.UNAVAILABLE
    assert entry_of(cell, "fails").reason == "ZeroDivisionError: on purpose"
    assert "ZeroDivisionError: on purpose" in report.render(records.Run(standin.MACHINE, {}, [cell]))


def test_hopeless_products_are_skipped_with_a_reason(monkeypatch):
    monkeypatch.setattr(admission, "_TOO_LONG_SECONDS", 0.0)
    monkeypatch.setattr(admission, "_TOO_MANY_FLOORS", 1e-6)
    (cell,) = cells(trial(wanted=("eager", "folded")), [cases.FORWARD])
    entry = entry_of(cell, "eager")
    assert (entry.status, entry.seconds) == (records.SKIPPED, [])
    assert "matrix products alone" in entry.reason


def test_extra_memory_is_above_results():
    some = trial("project", wanted=())

    def copies(x, keys, values):
        extra = x.clone()
        return (peers.project_folded(x, keys, values)[0] + 0 * extra,)

    some.contenders.append(Contender("copies", records.PEER, copies, ("x", "keys", "values")))
    (cell,) = cells(some, [cases.FORWARD])
    assert cell.map_bytes == 2 * 20 * 16 * 4
    assert entry_of(cell, "copies").extra_bytes >= 2 * cell.map_bytes


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.slow
def test_compiled_peers_take_part():
    for cell in cells(trial(wanted=("compile folded",))):
        assert entry_of(cell, "compile folded").timed


def test_rounds_follow_the_budget():
    budget = timing.Budget(seconds=0.0, least=4, most=9)
    names = "abc"
    assert set(map(len, timing.interleaved(dict.fromkeys(names, int), budget).values())) == {4}
    endless = budget._replace(seconds=1e9)
    assert set(map(len, timing.interleaved(dict.fromkeys(names, int), endless).values())) == {9}


def test_who_is_far_behind_leaves_but_ours_stays():
    fixed = {"ours": 9.0, "best": 0.1, "near": 0.12, "far": 0.3}
    functions = {name: (lambda name=name: name) for name in fixed}
    budget = timing.Budget(seconds=0.0, least=6, patience=1e9)
    seconds = timing.interleaved(functions, budget, stay={"ours"}, clock=lambda call: fixed[call()])
    assert {n: len(v) for n, v in seconds.items()} == {"ours": 6, "best": 6, "near": 6, "far": 3}


def test_slow_cells_get_few_rounds_and_drop_early():
    fixed = {"ours": 3.0, "best": 2.0, "behind": 4.0, "unlucky": 4.0}
    functions = {name: (lambda name=name: name) for name in fixed}
    before = {"unlucky": 2.1}  # its first call in the rounds was slow by chance
    seconds = timing.interleaved(
        functions, timing.Budget(), before=before, stay={"ours"}, clock=lambda call: fixed[call()]
    )
    assert {n: len(v) for n, v in seconds.items()} == {"ours": 3, "best": 3, "behind": 1, "unlucky": 3}


def test_order_changes_from_round_to_round():
    calls = []
    functions = {name: (lambda name=name: calls.append(name)) for name in "abcd"}
    timing.interleaved(functions, timing.Budget(seconds=0.0, least=8, few=8))
    rounds = [tuple(calls[i : i + 4]) for i in range(0, 32, 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 3


def _cell(op="project", ours=1.0, peer=2.0, which=cases.BOTH, dtype="fp32"):
    floor = records.Floor(2, 10, 100, [1.0, 3.0, 2.0], 10, [4.0])  # 50 bytes/s, 2.5 FLOPs/s
    entries = [
        records.Entry("vt_fast cpu", records.OURS, seconds=[ours, 9.0, ours / 2], extra_bytes=10),
        records.Entry("eager", records.PEER, seconds=[peer], extra_bytes=100, errors={"map": 1e-7}),
        records.Entry("sdpa", records.PEER, records.WRONG, "map is off", seconds=[]),
    ]
    has_floor = None if op == cases.STACK else floor
    return records.Cell(op, SHAPE, dtype, "nchw", 1, which, 200, has_floor, entries)


def test_figures_of_a_cell():
    cell = _cell()
    assert cell.ours.median == 1.0
    assert cell.floor.terms(cell.map_bytes) == {"bytes": 8.0, "flops": 4.0}
    assert (cell.floor_seconds, cell.bound, cell.over_floor) == (8.0, "bytes", 0.125)
    assert (cell.best_peer.name, cell.best_ratio) == ("eager", 2.0)


def test_marks_can_be_missed_and_met():
    good = records.Run(standin.MACHINE, {}, [_cell(), _cell(cases.STACK, peer=3.5)])
    assert [mark.met for mark in summary.marks(good)] == [True, None, True, True]
    bad = records.Run(standin.MACHINE, {}, [_cell(ours=40.0), _cell(cases.STACK, peer=2.5)])
    assert [mark.met for mark in summary.marks(bad)] == [False, None, False, False]
    assert summary.over_floor(bad) == [bad.cells[0]]
    text = report.render(bad)
    assert "NOT met: fp32" in text
    assert "2.50x in 10%" in text
    assert summary.geometric_mean(summary.ratios([_cell(), _cell(peer=8.0)])) == pytest.approx(4)


def test_nobody_without_a_figure_goes_unnamed():
    cell = _cell()
    cell.entries += [
        records.Entry("folded", records.PEER, records.SKIPPED, "needs about 9 GB", needs_bytes=9_000_000_000),
        records.Entry("transposed", records.PEER, records.FAILED, "on purpose", needs_bytes=1),
        records.Entry("lost", records.PEER, note="could neither be captured nor be called"),
    ]
    assert [entry.too_large for entry in cell.entries] == [None, None, None, 9_000_000_000, None, None]
    text = report.render(records.Run(standin.MACHINE, {}, [cell]))
    for words in (
        "sdpa, wrong in 1 cells, first project 2x20x16x4 fp32 nchw forward+backward, 1 thr.: map is off",
        "folded, skipped in 1 cells, ",
        "transposed, failed in 1 cells, ",
        "forward+backward, 1 thr.: could neither be captured nor be called",
    ):
        assert words in text


def test_json_round_trip(tmp_path):
    run = records.Run(standin.MACHINE, standin.CPU_SETTINGS, [_cell(), _cell(cases.STACK)], ["a problem"])
    records.save(run, tmp_path / "deep" / "run.json")
    assert records.load(tmp_path / "deep" / "run.json") == run
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.json"]
    data = dataclasses.asdict(run) | {"schema": 0}
    (tmp_path / "old.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="schema 1, got 0"):
        records.load(tmp_path / "old.json")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run from the command line."""
    path = tmp_path_factory.mktemp("bench") / "quick.json"
    status = cli.main(["cpu", "--quick", "--threads", "1", "--layout", "nchw", "--output", str(path)])
    return status, path


def test_quick_run_from_end_to_end(quick):
    status, path = quick
    assert status == 0
    run = records.load(path)
    assert run.complete
    assert run.problems == []
    assert len(run.cells) == (2 * 3 + 1) * 2 * 2
    assert {cell.op for cell in run.cells} == {*cases.OPS, cases.STACK}
    for cell in run.cells:
        assert (cell.floor is None) == (cell.op == cases.STACK)
        assert cell.threads == 1
        for entry in cell.entries:
            assert entry.status == records.OK, (cell, entry)
            assert len(entry.seconds) == 3
            assert entry.errors.keys() == entry.allowed.keys() != set()
            assert entry.extra_bytes >= 0
    assert {"versions", "devices", "caches", "compiler", "commit"} <= run.machine.keys()
    (process,) = run.settings["processes"]
    assert (process["torch_threads"], len(process["cpus"])) == (1, 1)


def test_quick_run_tells_nothing_of_where_it_ran(quick):
    text = quick[1].read_text()
    assert str(Path.home()) not in text
    assert str(quick[1].parent) not in text
    assert str(launch.ROOT) not in text


def test_show(quick, capsys):
    assert cli.main(["show", str(quick[1])]) == 0
    text = capsys.readouterr().out
    assert "its figures mean nothing" in text
    assert "project_tokenize" in text
    assert "Marks:" in text


@pytest.mark.parametrize("words", [["--threads", "0"], ["--threads", "9999"], ["--peers", "nobody"]])
def test_bad_arguments_end_with_2(words, capsys):
    assert cli.main(["cpu", "--quick", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_child_that_dies_is_a_problem_and_not_a_result(monkeypatch, tmp_path, capsys):
    def dies(plan, cpus):
        yield {"case": "one", "cells": []}
        raise RuntimeError("the process with 1 threads ended with status -9")

    monkeypatch.setattr(launch, "messages", dies)
    assert cli.main(["cpu", "--quick", "--threads", "1", "--output", str(tmp_path / "a.json")]) == 1
    run = records.load(tmp_path / "a.json")
    assert not run.complete
    assert "status -9" in run.problems[0]
    assert "Problem: " in capsys.readouterr().out


def test_a_child_uses_the_cpus_it_is_given():
    cpus = launch.available_cpus()
    assert sorted(cpus) == sorted(os.sched_getaffinity(0))
    settings = launch.environment(cpus[:1])
    assert settings["OMP_NUM_THREADS"] == "1"
    assert settings["GOMP_CPU_AFFINITY"] == str(cpus[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ops", "--tf32"], "--tf32 is for another device than cpu"),
        (["stack", "--max-autotune"], "--max-autotune is for another device"),
        (["ops", "--device", "cuda", "--threads", "1"], "--threads is for another device than cuda"),
        (["ops", "--dtype", "fp16"], "--dtype must be of fp32, bf16 on a CPU, got fp16"),
        (["gpu", "--device", "cpu"], "--device must be cuda or cuda:N, got cpu"),
        (["ops", "--compare", "nothing.json"], "No such file"),
        (["all", "--compare", "nothing"], "--compare must be a folder with results, got nothing"),
        (["all", "--compare", str(running.RESULTS)], "--compare must be another folder than --results"),
    ],
)
def test_options_that_do_not_fit_end_with_2(words, message, capsys):
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_devices_have_names(capsys):
    with pytest.raises(SystemExit):
        cli.main(["ops", "--device", "tpu"])
    assert "must be cpu, cuda or cuda:N, got tpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "found"), [("ops", set(cases.OPS)), ("stack", {cases.STACK}), ("cpu", {*cases.OPS, cases.STACK})]
)
def test_modes_choose_ops(mode, found):
    plan = ops.plan(cli._parser().parse_args([mode, "--quick"]))
    assert {case.op for case in plan["cases"]} == found


def test_shapes_are_chosen_by_name():
    words = ["ops", "--op", "project", "--shape", "8x3136x512x16", "1x950x256x8", "--dtype", "fp32"]
    plan = ops.plan(cli._parser().parse_args(words))
    found = [case.shape.label for case in plan["cases"] if case.layout == "nchw"]
    assert found == ["8x3136x512x16", "1x950x256x8"]


def test_results_have_names_of_their_own():
    def name(*words, full=True, about=None):
        options = cli._parser().parse_args([*words, "--results", "there"])
        return running.file_of(options, words[0], about or {}, full=full).as_posix()

    gpu = {"gpu": {"name": "Stand-in 9000"}}
    assert name("cpu") == "there/cpu.json"
    assert name("ops") == "there/ops-cpu.json"
    assert name("ops", about=gpu) == "there/ops-stand-in-9000.json"
    assert name("gpu", about=gpu) == "there/gpu-stand-in-9000.json"
    assert name("stack", about=gpu, full=False) == "there/stack-partial.json"
    assert name("scaling", "--output", "my.json", full=False) == "my.json"


def test_json_is_all_there_is_on_standard_output(tmp_path, capsys):
    words = ["ops", "--quick", "--op", "tokenize", "--dtype", "fp32", "--layout", "nchw", "--peers", "eager"]
    assert cli.main([*words, "--threads", "1", "--results", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((tmp_path / "ops-partial.json").read_text())
    assert "Marks:" in captured.err


def test_everything_runs_each_mode_and_reports(tmp_path, monkeypatch, capsys):
    told = []

    def measure(options):
        told.append((options.command, options.quick, options.results))
        path = tmp_path / f"{options.command}.json"
        return running.Finished(int(options.command == "scaling"), path)

    monkeypatch.setattr(everything.reporting, "main", lambda options: told.append(options.files) or 0)
    monkeypatch.setattr(cli, "_measured", measure)
    assert cli.main(["all", "--quick", "--results", str(tmp_path), "--compare", str(tmp_path.parent)]) == 1
    modes = ["cpu", "scaling", "overhead", "models"]
    assert told == [
        *((mode, True, tmp_path) for mode in modes),
        [tmp_path / f"{mode}.json" for mode in modes],
    ]
    assert capsys.readouterr().out.count("not compared: there is no") == 4


def test_ctrl_c_ends_everything_with_a_report(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(cli, "_measured", lambda options: running.Finished(130, tmp_path / "a.json"))
    monkeypatch.setattr(everything.reporting, "main", lambda options: found.append(options.files) or 0)
    assert cli.main(["all", "--results", str(tmp_path)]) == 130
    assert found == [[tmp_path / "a.json"]]

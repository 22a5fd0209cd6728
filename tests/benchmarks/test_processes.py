"""Child processes, from a plan to a result file; and what is not run."""

import json
import math

import msgspec
import pytest
import torch

from benchmarks import cli, machine, processes, report, results
from benchmarks.problems import OpProblem
from benchmarks.processes import Message, Plan, conduct, cpus_of
from benchmarks.results import OK, OURS, SKIPPED, Row, Run
from benchmarks.roofline import Floor
from benchmarks.shapes import FORWARD, PASSES, Case, Shape
from tests._support.measuring import measured
from vt_fast.testing import peak_bytes

CPU = torch.device("cpu")


def a_run(*rows):
    facts = {"machine": {}, "settings": {}, "commit": None, "complete": False, "problems": []}
    return Run(facts, list(rows))


def a_row(**fields):
    return Row(mode="ops", case="project", contender="vt_fast", role=OURS, **fields)


def conducted(**becomes):
    """A run in a child that does with each problem what is said here."""
    problems = [{"name": name, "becomes": each} for name, each in becomes.items()]
    run, saved = a_run(), []
    plan = Plan(problems=problems, cpus=cpus_of(1), work="tests._support.dying")
    assert conduct(run, [plan], lambda run: saved.append(len(run.rows))) == 0
    return run, saved


def test_a_child_that_dies_is_replaced_and_its_case_is_a_problem():
    run, saved = conducted(one="well", two="killed", three="well")
    assert [row.case for row in run.rows] == ["one", "three"]
    assert run.facts["problems"] == ["two: its process ended with status -9"]
    assert run.facts["complete"] is True
    assert run.facts["affinity"] == cpus_of(1)
    assert saved == [0, 1, 1, 2]
    assert cli.verdict(run) == 1


def test_runs_that_are_not_complete():
    run, _ = conducted(one="unthinkable")
    assert run.facts["complete"] is False
    assert run.facts["problems"][0].startswith("before the first case: its process")
    run, _ = conducted(one="well", two="late")
    assert run.facts["left_out"] == [{"case": "two", "why": "time", "reason": "the time was spent"}]
    assert (run.facts["complete"], run.facts["problems"]) == (False, [])


def test_facts_of_the_machine_hold_no_path_of_the_checkout():
    assert str(machine.ROOT) not in json.dumps(machine.describe())


def test_a_run_from_end_to_end(tmp_path, capsys):
    words = "cpu --quick --dtype fp32 --layout nchw --threads 1 --op project stack --results"
    assert cli.main([*words.split(), str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "cpu-partial.csv"
    assert f"written to {path}" in capsys.readouterr().out
    run = results.load(path)
    (process,) = run.facts["processes"]
    assert (process["cpus"], process["threads"]) == (cpus_of(1), 1)
    assert (run.facts["problems"], run.facts["complete"]) == ([], True)
    ours = [row for row in run.rows if row.role == OURS]
    assert len(ours) == 3 * 2
    assert all((row.floor or 0) > 0 for row in ours if row.mode == "ops")
    assert all(row.floor is None for row in ours if row.mode == "stack")
    assert {row.status for row in run.rows} == {OK}
    assert any(row.role == results.CEILING for row in run.rows)


def test_a_full_run_gets_its_own_file(monkeypatch, tmp_path):
    complete = [True]

    def conducts(run, plans, save):
        run.rows.append(a_row(median=1.0))
        run.facts |= {"complete": complete[0], "elapsed_seconds": 1.0}
        save(run)
        return 0

    monkeypatch.setattr(cli, "conduct", conducts)
    monkeypatch.setattr(machine, "unusable", lambda device: None)
    monkeypatch.setattr(machine, "describe", lambda device: {"gpu": {"name": "Stand-in 9000"}})
    monkeypatch.setattr(report, "show", lambda run: "")

    def files(*words):
        assert cli.main(["gpu", "--results", str(tmp_path), "--budget", "100", *words]) == 0
        return sorted(path.name for path in tmp_path.iterdir())

    assert files("--op", "stack") == ["gpu-partial.csv"]
    assert files() == ["gpu-stand-in-9000.csv"]
    complete[0] = False
    assert files() == ["gpu-partial.csv", "gpu-stand-in-9000.csv"]


@pytest.mark.parametrize("words", ["cpu --device cuda", "ops --peers nonesuch", "show nonesuch.csv"])
def test_bad_arguments_exit_with_2(capsys, words):
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert cli.main(["list"]) == 0


def test_exit_status_of_a_run():
    assert cli.verdict(a_run(a_row(median=1.0))) == 0
    assert cli.verdict(a_run(a_row(status=SKIPPED, reason="too large"))) == 0
    assert cli.verdict(a_run(a_row(status="wrong", reason="map is off"))) == 1
    wrong = Row(
        mode="hosts", case="a", contender="compile vt_fast", role="backend", status="wrong", reason="is off"
    )
    assert cli.verdict(a_run(a_row(median=1.0), wrong)) == 1
    assert cli.verdict(a_run()) == 1


def test_infinite_errors_survive_the_pipe_and_the_file(tmp_path):
    row = a_row(status="wrong", reason="NaN", error=math.inf)
    message = Message(rows=[row])
    assert msgspec.convert(json.loads(processes._packed(message)), Message) == message
    results.save(a_run(row), tmp_path / "run.csv")
    assert results.load(tmp_path / "run.csv").rows == [row]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("op", ["tokenize", "project", "project_tokenize"])
def test_memory_is_predicted(op):
    problem = OpProblem(Case(op, Shape(2, 32, 32, 64, 8), "fp32", "nchw"), CPU)
    for contender in problem.contenders:
        if contender.name in ("eager", "folded", "transposed", "sdpa math"):
            for which in PASSES:
                call = problem.call(contender, which)
                call()
                predicted = problem._predict(contender, which).peak_bytes
                assert predicted == pytest.approx(peak_bytes(call), rel=0.01), (contender.name, which)


def test_what_does_not_fit_is_not_run():
    problem = OpProblem(Case("project", Shape(2, 4, 5, 16, 4), "fp32", "nchw"), CPU, passes=[FORWARD])
    needs = {each.name: problem.needs(each, FORWARD) for each in problem.contenders}
    rows = measured(problem, most_bytes=1000)
    assert {row.status for row in rows.values()} == {SKIPPED}
    assert {name: row.needs_bytes for (name, _), row in rows.items()} == needs
    assert problem._laid is None  # nothing was drawn for it
    # where the yardstick does not fit, all others are judged by roundings alone
    rows = measured(problem, most_bytes=needs["folded"] - 1)
    assert [rows[name, FORWARD].status for name in ("folded", "vt_fast torch")] == [SKIPPED, OK]
    assert set(problem._gates[FORWARD].yardstick.values()) == {0.0}


class Ceilings:
    """Of a machine so slow that every product takes a second."""

    def measure(self, work, anew=False):
        pass

    def floor(self, work):
        return Floor(sum(each.flops for each in work) / 1e4, "flops")


def test_hopeless_products_are_skipped_and_others_not_compiled():
    case = Case("project", Shape(1, 2, 2, 64, 1), "fp32", "nchw")
    problem = OpProblem(case, CPU, ["folded", "eager", "compile folded"], [FORWARD])
    rows = {name: row for (name, _), row in measured(problem, Ceilings()).items()}
    assert rows["eager"].reason.startswith("its matrix products alone take")
    assert rows["eager"].reason.endswith("times the floor")
    assert rows["compile folded"].reason.startswith("not compiled: its matrix products alone")
    assert (rows["folded"].status, rows["folded"].bound) == (OK, "flops")


@pytest.mark.parametrize(("siblings", "order"), [("0,2", [0, 1, 2, 3]), ("0,1", [0, 2, 1, 3])])
def test_first_hardware_threads_come_first(monkeypatch, siblings, order):
    first = {int(cpu) for cpu in siblings.split(",")}
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(processes.Path, "exists", lambda self: True)
    monkeypatch.setattr(processes.Path, "read_text", lambda self: str(int(self.parts[5][3:]) in first))
    assert cpus_of(None) == order

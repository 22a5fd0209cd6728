"""The command line of what measures: a quick run from end to end, options, files, and all modes in turn."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("tqdm")

from benchmarks import cases, cli, everything, first_call, launch, ops, records, running


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


@pytest.mark.parametrize("mode", ["cpu", "scaling", "overhead", "models"])
def test_a_run_that_was_not_finished_replaces_no_full_one(monkeypatch, tmp_path, mode):
    def ends(error):
        def messages(plan, cpus):
            yield from ()
            if error is not None:
                raise error

        monkeypatch.setattr(launch, "messages", messages)
        status = cli.main([mode, "--results", str(tmp_path)])
        (path,) = tmp_path.iterdir()
        path.unlink()
        return status, path.stem

    monkeypatch.setattr(first_call, "measure", lambda *_, **__: [])
    assert ends(None) == (1, "cpu" if mode == "cpu" else f"{mode}-cpu")
    assert ends(KeyboardInterrupt()) == (130, f"{mode}-partial")
    assert ends(RuntimeError("killed")) == (1, f"{mode}-partial")


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

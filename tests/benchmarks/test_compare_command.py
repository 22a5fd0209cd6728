"""``python -m benchmarks compare``, and ``--compare`` of what measures, on times drawn at random."""

import dataclasses
import functools

import pytest

from tests._support.drawn_runs import Machine, network_run, one_cell_slower

pytest.importorskip("tqdm")

from benchmarks import cli, launch, machine, ops, records, running
from benchmarks.comparison import compare
from benchmarks.figures import OURS
from benchmarks.networks import records as networks
from benchmarks.noise import SLOWER


def test_networks_are_compared(tmp_path, capsys):
    old, same, slow = network_run(1), network_run(2), network_run(3, 1.6)
    assert compare(same, old).status == 0
    found = compare(slow, old)
    assert len([each for each in found.verdicts if each.word == SLOWER and each.change.role == OURS]) == 5
    for name, run in (("old", old), ("slow", slow)):
        networks.save(run, tmp_path / f"{name}.json")
        assert networks.load(tmp_path / f"{name}.json") == run
    words = [str(tmp_path / "slow.json"), str(tmp_path / "old.json")]
    assert cli.main(["compare", *words]) == 1
    assert "ResNet-18, inference, fp32, 2 thread(s), nchw, VT fused" in capsys.readouterr().out


def test_the_command(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("old.json", "same.json", "slow.json")]
    for path, run in zip(
        paths, (Machine(1).run(), Machine(2).run(), Machine(3).run(one_cell_slower(1.5))), strict=True
    ):
        records.save(run, tmp_path / path)
    old, same, slow = paths
    assert cli.main(["compare", same, old]) == 0
    assert "REGRESSIONS" not in capsys.readouterr().out
    assert cli.main(["compare", slow, old, "--all"]) == 1
    assert "sdpa" in capsys.readouterr().out
    assert cli.main(["compare", slow, str(tmp_path / "none.json")]) == 2
    (tmp_path / "bad.json").write_text("{")
    assert cli.main(["compare", slow, str(tmp_path / "bad.json")]) == 2
    assert "must be a result file" in capsys.readouterr().err
    assert cli.main(["compare", slow, str(running.RESULTS / "offline.json")]) == 2
    assert "must have measured times" in capsys.readouterr().err


def measured(monkeypatch, run):
    """Let the command for CPUs measure what a run has."""

    def messages(plan, cpus):
        yield from ({"case": "one", "cells": [dataclasses.asdict(cell)]} for cell in run.cells)

    monkeypatch.setattr(launch, "messages", messages)


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.5, 1)])
def test_a_run_is_compared_with_the_file_that_it_replaces(monkeypatch, tmp_path, capsys, factor, status):
    path = tmp_path / "cpu.json"
    records.save(Machine(1).run(about=machine.describe()), path)
    new = Machine(2).run(one_cell_slower(factor))
    measured(monkeypatch, new)
    words = ["cpu", "--threads", "1", "--output", str(path), "--compare", str(path)]
    assert cli.main(words) == status
    assert records.load(path).cells == new.cells
    text = capsys.readouterr().out
    assert f"This run (NEW) against {path} (OLD)" in text
    assert ("REGRESSIONS:" in text) == (status == 1)


@pytest.mark.parametrize("command", ["cpu", "models"])
def test_what_cannot_be_compared_is_not_measured_first(monkeypatch, tmp_path, capsys, command):
    def never(plan, cpus):
        raise AssertionError("measured")

    monkeypatch.setattr(launch, "messages", never)
    path = tmp_path / "old.json"
    run = Machine(1).run() if command == "cpu" else network_run(1)
    if command == "cpu":
        records.save(run, path)
    else:
        networks.save(run, path)
    words = [command, "--threads", "1", "--output", str(tmp_path / "new.json"), "--compare"]
    assert cli.main([*words, str(path)]) == 2
    assert "differ in what times depend on: CPU: " in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "none.json")]) == 2
    assert not (tmp_path / "new.json").exists()


def test_comparing_leaves_nothing_out_of_a_full_run():
    everything = functools.partial(ops.add_arguments, mode="cpu")
    for words, full in ((["--force", "--json"], True), (["--quick"], False)):
        options = cli._parser().parse_args(["cpu", "--compare", "old.json", *words])
        assert running.is_full(options, everything) == full

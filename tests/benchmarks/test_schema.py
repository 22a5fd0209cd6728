"""Schemas of result files: what each must name, and that every committed one does."""

import copy
import dataclasses
import json
from typing import NamedTuple

import pytest

from tests._support import standin

pytest.importorskip("tqdm")

from benchmarks import cases, cli, documents, records, running
from benchmarks.documents import COMPILED, CPU, GPU, KINDS, NETWORKS
from benchmarks.networks import records as networks
from benchmarks.networks.sides import FUSED
from benchmarks.schema import complaints, schema_of
from benchmarks.timing import spread, spread_text

FILES = sorted(running.RESULTS.glob("*.json"))
NAMED = [
    "schema",
    "settings",
    "machine.commit",
    "machine.versions.torch",
    "machine.versions.vt_fast",
    "machine.versions.triton",
    "machine.devices.cpu",
    "machine.devices.threads",
    "machine.devices.gpu",
]


def cpu_run():
    floor = records.Floor(1, 1, 10, [1.0], 10, [1.0])
    entries = [
        records.Entry("vt_fast cpu", records.OURS, seconds=[1.0, 2.0], errors={"map": 1e-7}),
        records.Entry("eager", records.PEER, records.WRONG, "map is off"),
    ]
    cell = records.Cell(
        "project", cases.Shape(1, 2, 2, 8, 4), "fp32", "nchw", 1, cases.BOTH, 10, floor, entries
    )
    return records.Run(standin.MACHINE, standin.CPU_SETTINGS, [cell])


def plain(kind):
    """A result of a kind, as plain data."""
    run = cpu_run()
    if kind == GPU:
        run.machine, run.settings = standin.GPU_MACHINE, standin.GPU_SETTINGS
    if kind == NETWORKS:
        side = networks.Side(FUSED, 1, [1.0], 1)
        cell = networks.NetworkCell("stage", "a stage", 1, "fp32", "nchw", 1, "inference", [side])
        settings = {"networks": True, "quick": True, "passes": [], "sides": [], "dtype": [], "layout": []}
        run = networks.NetworkRun(standin.MACHINE, settings | {"device": "cpu", "threads": 1}, [cell])
    return copy.deepcopy(dataclasses.asdict(run))


def check(data):
    documents.check(data, "file")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_committed_results_fit(path):
    data = documents.read(path)
    # Infinity is no JSON, though Python writes it.
    json.loads(path.read_text(), parse_constant=pytest.fail)
    if documents.kind_of(data) == COMPILED:
        return
    commit = data["machine"]["commit"]
    assert len(commit["hash"]) == 40
    assert commit["dirty"] is False
    assert data["machine"]["devices"]["cpu"]
    assert data["complete"] is True


def test_there_are_committed_results_of_ops_and_of_networks():
    assert {CPU, NETWORKS, COMPILED} <= {documents.kind_of(documents.read(path)) for path in FILES}


@pytest.mark.parametrize("kind", [CPU, GPU, NETWORKS])
def test_every_kind_must_name_what_it_was_made_with(kind):
    assert documents.kind_of(plain(kind)) == kind
    check(plain(kind))
    required = {
        CPU: ["settings.threads", "settings.budget", "settings.peers"],
        GPU: ["machine.gpu", "machine.gpu.driver_version", "machine.gpu.name", "settings.tf32"],
        NETWORKS: ["settings.threads", "settings.device", "settings.sides"],
    }
    # "schema" has a default, and without its number the file cannot be loaded.
    for name in [*NAMED[1:], *required[kind], "settings.quick", "cells"]:
        data = plain(kind)
        *parts, last = name.split(".")
        place = data
        for part in parts:
            place = place[part]
        del place[last]
        with pytest.raises(ValueError, match=rf'must have "{last}"'):
            check(data)


def test_networks_on_a_gpu_name_it():
    data = plain(NETWORKS)
    data["settings"]["device"] = "cuda"
    with pytest.raises(ValueError, match='machine must have "gpu"'):
        check(data)
    data["machine"]["gpu"] = standin.ABOUT
    check(data)


def broken(change):
    data = plain(CPU)
    change(data, data["cells"][0], data["cells"][0]["entries"][0])
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run, cell, entry: run.update(schema=2), "schema must be one of 1, got 2"),
        (lambda run, cell, entry: run.update(extra=1), "extra must not be there"),
        (lambda run, cell, entry: cell.update(shape=[1, 2]), "must have at least 5 items, got 2"),
        (lambda run, cell, entry: cell.update(shape=[1] * 6), r"shape\[5\] must not be there"),
        (lambda run, cell, entry: cell.update(threads="2"), 'threads must be integer, got "2"'),
        (lambda run, cell, entry: cell["floor"].update(maps=None), "floor.maps must be integer, got null"),
        (lambda run, cell, entry: entry.update(status="fine"), "status must be one of"),
        (
            lambda run, cell, entry: entry.update(seconds=[1.0, -1.0]),
            r"seconds\[1\] must be at least 0, got -1",
        ),
        (lambda run, cell, entry: entry.update(seconds=[float("nan")]), "must be at least 0, got nan"),
        (lambda run, cell, entry: entry.update(extra_bytes=True), "extra_bytes must be integer, got True"),
        # a wrong result with a figure
        (lambda run, cell, entry: entry.update(status="wrong"), "seconds must have at most 0 items, got 2"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(change, message):
    with pytest.raises(ValueError, match=f"file must fit the schema of cpu results: .*{message}"):
        check(broken(change))


def test_networks_have_no_figure_with_a_reason():
    data = plain(NETWORKS)
    data["cells"][0]["sides"][0]["reason"] = "result: relative error 1"
    with pytest.raises(ValueError, match="seconds must have at most 0 items"):
        check(data)


def test_what_does_not_fit_replaces_no_file_and_is_not_lost(tmp_path):
    path = tmp_path / "run.json"
    records.save(cpu_run(), path)
    before = path.read_text()
    run = cpu_run()
    run.machine = {}
    with pytest.raises(ValueError, match=r'run.json.part must fit .*machine must have "versions"'):
        records.save(run, path)
    assert path.read_text() == before
    assert json.loads((tmp_path / "run.json.part").read_text())["machine"] == {}


def test_the_command(tmp_path, capsys):
    for kind in KINDS:
        assert cli.main(["schema", "--kind", kind]) == 0
        assert json.loads(capsys.readouterr().out)["type"] == "object"
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(plain(GPU)))
    bad.write_text("[]")
    assert cli.main(["schema", str(good)]) == 0
    assert capsys.readouterr().out == f"{good}: a gpu result\n"
    assert cli.main(["schema", str(bad), str(good)]) == 1
    found = capsys.readouterr()
    assert "must be a result file, got a JSON of list" in found.err
    assert "good.json" in found.out


class Pair(NamedTuple):
    first: int
    second: str


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, 1, True),
        (float, 1, "1"),
        (str, "", None),
        (int | None, None, 1.5),
        (list[float], [1, 2.5], [None]),
        (dict[str, int], {"a": 1}, {"a": "1"}),
        (Pair, [1, "a"], [1, 2]),
        (Pair, (1, "a"), [1, "a", 3]),
    ],
)
def test_schemas_of_types(hint, good, bad):
    assert list(complaints(good, schema_of(hint))) == []
    assert len(list(complaints(bad, schema_of(hint)))) == 1


def test_types_without_a_schema_are_refused():
    with pytest.raises(TypeError, match="must be a type that JSON has"):
        schema_of(set[int])


def test_spread_is_of_quantiles():
    assert spread([10.0, 11.0, 12.0, 13.0, 14.0, 24.0]) == pytest.approx((11 / 12.5, 14 / 12.5))
    assert spread([2.0]) == (1.0, 1.0)
    assert spread_text([]) == "-"
    with pytest.raises(ValueError, match="got none"):
        spread([])
    entry = records.Entry("ours", records.OURS, seconds=[1.0, 2.0, 3.0])
    assert entry.spread == networks.Side("ours", seconds=[1.0, 2.0, 3.0]).spread == pytest.approx((0.7, 1.3))

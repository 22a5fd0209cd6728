"""Modes that vary sizes, stream a map, and measure what a call costs: tiny shapes, no time is asserted."""

import json

import pytest
import torch

from tests._support import standin

pytest.importorskip("tqdm")

from benchmarks import (
    cases,
    cli,
    first_call,
    gate,
    launch,
    operands,
    overhead,
    records,
    scaling,
    series,
    stream,
    truth,
)
from benchmarks.host import Host
from benchmarks.trial import pose

SHAPE = cases.Shape(2, 10, 6, 32, 4)


def test_series_vary_one_size_around_the_base():
    found = series.points("cpu", "fp32", "channels_last", 2)
    base = series.BASES["cpu"]
    for point, names in found.items():
        assert names
        case = point.case
        for name, value in names.items():
            if name in ("N", "L", "C", "B"):
                others = {"L": case.shape.tokens - base.tokens, "C": case.shape.channels - base.channels}
                others |= {"N": case.shape.pixels - base.pixels, "B": case.shape.batch - base.batch}
                assert all(difference == 0 for other, difference in others.items() if other != name)
                at = {"N": case.shape.pixels, "L": case.shape.tokens}
                at |= {"C": case.shape.channels, "B": case.shape.batch}
                assert at[name] == value
    values = {
        name: sorted({names[name] for names in found.values() if name in names}) for name in series.NAMES
    }
    assert values["N"][0] == 196
    assert values["N"][-1] > 1_000_000
    assert (values["L"][0], values["L"][-1]) == (1, 256)
    assert (values["C"][0], values["C"][-1]) == (64, 2048)
    assert values["modules"] == [1, 2, 3, 4, 5, 6]
    assert values["threads"] == [1, 2]
    assert len(values["chunks"]) > 3
    # the base is measured once and belongs to all of them
    shared = found[series.Point(cases.Case("project", base, "fp32", "channels_last"), 2)]
    assert shared == {"N": base.pixels, "L": 16, "C": 256, "B": 1, "threads": 2}


def test_a_gpu_has_no_series_of_threads():
    found = series.points("cuda", "bf16", "nchw", None)
    assert {point.threads for point in found} == {None}
    assert all("threads" not in names for names in found.values())


def test_huge_cases_have_a_process_of_their_own():
    points = series.points("cpu", "fp32", "nchw", 2, only=["N", "threads"])
    (alone, first), (many, second), *huge = scaling.processes(points)
    assert (first, second) == (1, 2)
    assert [case.op for case in alone] == list(cases.OPS)
    assert [(len(some), threads) for some, threads in huge] == [(1, 2)] * 3
    assert {some[0].shape.pixels for some, _ in huge} == {2048**2}
    everything = [*alone, *many, *(case for some, _ in huge for case in some)]
    assert sorted(everything) == sorted(point.case for point in points)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "scaling-cpu.json"),
        (["--memory", "9"], "scaling-cpu.json"),
        (["--threads", "1"], "scaling-partial.json"),
    ],
)
def test_fewer_threads_are_no_full_run(monkeypatch, tmp_path, words, name):
    monkeypatch.setattr(launch, "messages", lambda plan, cpus: iter(()))
    cli.main(["scaling", "--results", str(tmp_path), *words])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_cases_survive_json():
    for point in series.points("cpu", "fp32", "nchw", 2, quick=True):
        op, shape, *others = json.loads(json.dumps(point.case))
        assert cases.Case(op, cases.Shape(*shape), *others) == point.case


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_chunks_come_to_the_whole(count, layout):
    drawn, cotangents = operands.draw("tokenize", SHAPE, "fp64")
    expected = truth.solve("tokenize", drawn, cotangents)
    x = operands.lay_out(drawn["x"], SHAPE, layout)
    parts = stream.chunks(x, count)
    assert torch.equal(torch.cat(list(parts), 2), x)
    assert len(parts) <= count
    found = stream.contenders(count)
    assert found[0].kind == records.OURS
    assert [contender.name for contender in found][-2:] == ["eager", stream.PLAIN]
    for contender in found:
        leaves = [x.detach().requires_grad_(), drawn["queries"].detach().requires_grad_()]
        results = contender.function(*leaves)
        values = [*results, *torch.autograd.grad(results, leaves, cotangents)]
        errors = gate.errors(zip(["tokens", "dx", "dqueries"], values, strict=True), expected)
        assert max(errors.values()) < 1e-10, contender.name


def test_a_stack_may_have_any_depth():
    for depth in (1, 2):
        case = cases.Case(cases.STACK, cases.QUICK_STACK_SHAPE, "fp32", "nchw", depth)
        drawn = pose(case).operands
        assert {name.split(".")[1] for name in drawn if name.startswith("blocks.")} == set(
            map(str, range(depth))
        )


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """One quick run from the command line."""
    path = tmp_path_factory.mktemp("scaling") / "quick.json"
    words = ["--quick", "--threads", "1", "--op", "tokenize", "--peers", "eager", "sdpa math"]
    status = cli.main(["scaling", *words, "--output", str(path)])
    return status, path


def test_scaling_from_end_to_end(scaled, capsys):
    status, path = scaled
    assert status == 0
    run = records.load(path)
    assert run.complete
    assert run.settings["mode"] == "scaling"
    assert {name for cell in run.cells for name in cell.series} == set(series.NAMES)
    for cell in run.cells:
        assert cell.ours.timed
        for entry in cell.entries:
            assert entry.status == records.OK, (cell, entry)
            assert entry.needs_bytes > cell.map_bytes
    assert cli.main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    for name in ("against N: pixels", "against chunks: chunks of a map", "extra MB of", "eager"):
        assert name in text
    assert "Absent: " in text


def test_scaling_keeps_what_does_not_fit(tmp_path, capsys):
    path = tmp_path / "little.json"
    words = ["--quick", "--threads", "1", "--op", "tokenize", "--only", "N", "--pass", "forward"]
    status = cli.main(["scaling", *words, "--memory", "0.0001", "--peers", "eager", "--output", str(path)])
    assert status == 0
    run = records.load(path)
    cells = {cell.series["N"]: cell for cell in run.cells}
    assert cells[16].ours.timed
    for entry in cells[256].entries:
        assert (entry.status, entry.seconds) == (records.SKIPPED, [])
        assert entry.needs_bytes > 100_000
    assert "needs about" in capsys.readouterr().out


def test_scaling_refuses_bad_arguments(capsys):
    for words in (["--threads", "0"], ["--peers", "nobody"], ["--memory", "0"]):
        assert cli.main(["scaling", "--quick", *words]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_overhead_from_end_to_end(tmp_path, capsys):
    path = tmp_path / "overhead.json"
    words = ["--quick", "--op", "tokenize", "stack", "--peers", "eager", "--no-first-call"]
    assert cli.main(["overhead", *words, "--output", str(path)]) == 0
    run = records.load(path)
    assert [(cell.op, cell.which) for cell in run.cells] == [
        (op, which) for op in ("tokenize", "stack") for which in cases.PASSES
    ]
    for cell in run.cells:
        assert cell.floor is None
        assert {entry.name for entry in cell.entries} >= {"vt_fast torch", "eager"}
        for entry in cell.entries:
            assert entry.status == records.OK, entry
            assert len(entry.seconds) == 3
    printed = capsys.readouterr().out
    assert "us per call" in printed
    assert cli.main(["show", str(path)]) == 0
    assert capsys.readouterr().out.strip() in printed
    assert cli.main(["overhead", "--peers", "nobody"]) == 2


def test_the_clock_of_many_calls_gives_the_share_of_one(monkeypatch):
    ticks = iter([1.0, 5.0])
    monkeypatch.setattr("benchmarks.host.time.perf_counter", lambda: next(ticks))
    made = []
    assert Host(1, 4, torch.device("cpu")).clock(lambda: made.append(1)) == 1.0
    assert len(made) == 5


def test_first_calls_of_fresh_processes(monkeypatch):
    monkeypatch.setattr(first_call, "PEERS", ())
    monkeypatch.setattr(first_call, "PLAIN", "vt_fast nothing")
    ours, wrong = first_call.measure("cpu", "fp32", 1, [0], quick=True)
    assert ours.reason is None
    for seconds in (ours.import_torch, ours.import_vt_fast, ours.first, ours.second):
        assert len(seconds) == 1
        assert seconds[0] > 0
    assert wrong.first == []
    assert "nothing" in wrong.reason
    run = records.Run({}, {"repeat": 1}, [], first_calls=[ours, wrong])
    assert "import" in overhead._first_calls(run)


def test_first_calls_survive_json(tmp_path):
    each = records.FirstCall("eager", "tokenize", SHAPE, "fp32", cold=True, first=[1.0])
    run = records.Run(standin.MACHINE, standin.CPU_SETTINGS, [], first_calls=[each])
    records.save(run, tmp_path / "run.json")
    assert records.load(tmp_path / "run.json") == run

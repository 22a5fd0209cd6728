"""How a call is timed on a GPU: captured as a graph and checked again; with a stand-in."""

import subprocess
import sys

import pytest
import torch

from benchmarks import devices, processes, results
from benchmarks.problems import OpProblem
from benchmarks.shapes import Case, Shape
from tests._support import standin
from tests._support.measuring import measured

CASE = Case("project", Shape(2, 4, 5, 16, 4), "fp32", "nchw")


def on_stand_in(monkeypatch, refuses=lambda number: False):
    device, stand_in = standin.gpu(monkeypatch, refuses)
    rows = measured(OpProblem(CASE, device.torch_device, ["folded"]), device=device)
    assert stand_in.alive == set()
    assert stand_in.current is stand_in.default
    assert {(row.clock, row.threads) for row in rows.values()} == {("graph", None)}
    return rows, stand_in


def test_every_call_is_timed_as_a_graph(monkeypatch):
    rows, stand_in = on_stand_in(monkeypatch)
    assert all(row.status == results.OK and row.rounds == 3 for row in rows.values())
    assert stand_in.captures == len(rows)
    assert stand_in.replays == (1 + 3) * len(rows)


def test_what_cannot_be_captured_is_timed_by_plain_calls(monkeypatch):
    rows, stand_in = on_stand_in(monkeypatch, lambda number: number == 1)
    row = rows["folded", "forward"]
    assert row.median > 0
    assert "not captured as a graph: RuntimeError: operation not permitted" in row.note
    assert [each.note for each in rows.values()].count("") == len(rows) - 1
    assert len(stand_in.pools) == 3  # one a pass, and one in place of the failed capture's


def test_a_graph_that_computes_something_else_gets_no_time(monkeypatch):
    capture = devices.Captures.capture

    def slips(self, call):
        replay, values = capture(self, call)
        return replay, tuple(value * 1.01 for value in values)

    monkeypatch.setattr(devices.Captures, "capture", slips)
    rows, _ = on_stand_in(monkeypatch)
    assert {row.status for row in rows.values()} == {results.WRONG}
    assert all(row.reason.startswith("replayed: map is off by") for row in rows.values())


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_quick_run_on_a_gpu(tmp_path):
    # In a process of its own: the tests' deterministic algorithms are none that one would measure.
    path = tmp_path / "quick.csv"
    command = [sys.executable, "-m", "benchmarks", "gpu", "--quick", "--output", str(path)]
    done = subprocess.run(command, cwd=processes.ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = results.load(path)
    ours = [row for row in run.rows if row.role == results.OURS]
    assert run.facts["complete"]
    assert len(ours) == (2 * 3 + 1) * 3 * 2 * 2
    assert all(row.contender == "vt_fast triton" and row.status == results.OK for row in ours)

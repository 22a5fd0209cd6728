"""How a call is timed on a GPU: captured as a graph, checked again, and as a plain call; with a stand-in."""

import subprocess
import sys

import pytest
import torch

from benchmarks import devices, processes, results
from benchmarks.problems import OpProblem
from benchmarks.runner import Measurement
from benchmarks.shapes import PASSES, Case, Shape
from benchmarks.timing import QUICK
from tests._support import standin

CASE = Case("project", Shape(2, 4, 5, 16, 4), "fp32", "nchw")


def measured(monkeypatch, refuses=lambda number: False):
    device, stand_in = standin.gpu(monkeypatch, refuses)
    rows = list(Measurement(device, QUICK).rows(OpProblem(CASE, device.torch_device, ["folded"])))
    assert stand_in.alive == set()
    assert stand_in.current is stand_in.default
    return {(row.contender, row.which, row.clock): row for row in rows}, stand_in


def test_every_call_is_timed_as_a_graph_and_as_a_plain_call(monkeypatch):
    rows, stand_in = measured(monkeypatch)
    names = {name for name, *_ in rows}
    assert rows.keys() == {
        (n, which, clock) for n in names for which in PASSES for clock in ("graph", "calls")
    }
    assert all(row.status == results.OK and row.rounds == 3 and row.threads is None for row in rows.values())
    assert stand_in.captures == len(names) * len(PASSES)


def test_what_cannot_be_captured_is_timed_by_plain_calls(monkeypatch):
    rows, stand_in = measured(monkeypatch, lambda number: number == 1)
    row = rows["folded", "forward", "graph"]
    assert row.status == results.UNAVAILABLE
    assert "cannot be captured as a graph: RuntimeError: operation not permitted" in row.reason
    assert rows["folded", "forward", "calls"].median > 0
    assert rows["vt_fast torch", "forward", "graph"].median > 0
    assert len(stand_in.pools) == 3  # one a pass, and one in place of the failed capture's


def test_a_graph_that_computes_something_else_gets_no_time(monkeypatch):
    capture = devices.Captures.capture

    def slips(self, call):
        replay, values = capture(self, call)
        return replay, tuple(value * 1.01 for value in values)

    monkeypatch.setattr(devices.Captures, "capture", slips)
    rows, _ = measured(monkeypatch)
    assert {(row.clock, row.status) for row in rows.values()} == {("graph", results.WRONG)}
    assert all(row.reason.startswith("replayed: map is off by") for row in rows.values())


def test_a_plain_call_that_fails_after_the_graphs_ends_no_cell(monkeypatch):
    device, _ = standin.gpu(monkeypatch)
    calls = iter(range(100))

    def poor():
        if next(calls) > 2:  # two warm-ups and the capture
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (torch.zeros(1),)

    those = {"poor": poor, "good": lambda: (torch.ones(1),)}
    found = device.times(those, lambda name, values: None, QUICK)
    assert len(found["graph"]["poor"].seconds) == 3
    assert found["calls"]["poor"].reason == "OutOfMemoryError: CUDA out of memory"
    assert len(found["calls"]["good"].seconds) == 3


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
    assert len(ours) == (2 * 3 + 1) * 3 * 2 * 2 * 2
    assert all(row.contender == "vt_fast triton" and row.status == results.OK for row in ours)

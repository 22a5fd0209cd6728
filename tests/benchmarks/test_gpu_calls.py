"""How a call is timed on a GPU: captured as a graph, checked again, or as a plain call; with a stand-in."""

import itertools

import pytest
import torch

from benchmarks import cases, graphs, peers_gpu, records, report, timing
from benchmarks.device import Call, Times
from benchmarks.gpu_device import Gpu
from tests._support import standin
from tests._support.gpu_rehearsal import quick_cells


def test_who_cannot_be_captured_is_timed_as_a_plain_call(monkeypatch):
    cells, stand_in = quick_cells(monkeypatch, lambda number: number == 1)
    first, other, *_ = cells[0].entries
    assert (first.status, first.timed_as) == (records.OK, records.EAGER)
    assert "operation not permitted when stream is capturing" in first.note
    assert first.timed
    assert other.timed_as == records.GRAPH
    # the failed one's pool is not used again
    assert len(stand_in.pools) == 3
    assert stand_in.current is stand_in.default
    run = records.Run(standin.GPU_MACHINE, {"device": "cuda:0", "launch_seconds": [1e-6]}, cells)
    assert "could not be captured" in report.render(run)


def test_who_can_neither_be_captured_nor_called_beside_the_graphs_ends_no_cell(monkeypatch):
    device, _ = standin.gpu(monkeypatch, lambda number: number == 1)
    poor = itertools.count(1)

    def call():
        if next(poor) > 3:  # two warm-ups and the capture
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (torch.zeros(1),)

    calls = {"poor": call, "other": lambda: (torch.ones(1),)}
    found = device.times(calls, lambda name, values: None, timing.QUICK, {}, ())
    assert (found["poor"].seconds, found["poor"].wrong) == ([], None)
    assert "nor be called: OutOfMemoryError: CUDA out of memory" in found["poor"].note
    assert (len(found["other"].seconds), len(found["other"].eager_seconds)) == (3, 3)


def test_who_has_no_time_is_not_ok(monkeypatch):
    def untimed(self, calls, *rest):
        return {name: timing_of(name) for name in calls}

    def timing_of(name):
        return Times([], note="nor be called: CUDA out of memory") if name == "folded" else Times([1.0])

    monkeypatch.setattr(Gpu, "times", untimed)
    cells, _ = quick_cells(monkeypatch)
    for cell in cells:
        entries = {entry.name: entry for entry in cell.entries}
        assert entries["folded"].status == records.FAILED
        assert entries["folded"].reason == "nor be called: CUDA out of memory"
        assert entries["sdpa"].status == records.OK


def test_a_call_that_fails_under_capture_leaves_the_stream_as_it_was():
    stand_in = standin.StandIn()
    captures = graphs.Captures(stand_in)
    calls = itertools.count(1)

    def fails_in_the_third():
        if next(calls) == 3:
            raise ZeroDivisionError
        return (torch.zeros(1),)

    with pytest.raises(ZeroDivisionError):
        captures.capture(fails_in_the_third)
    assert stand_in.current is stand_in.default
    replay, (value,) = captures.capture(lambda: (torch.ones(1),))
    replay()
    assert value == 1
    captures.close()
    assert stand_in.alive == set()


def test_a_graph_that_computes_something_else_has_no_figure(monkeypatch):
    capture = graphs.Captures.capture

    def slips(self, call: Call):
        replay, results = capture(self, call)
        return replay, tuple(value * 1.01 for value in results)

    monkeypatch.setattr(graphs.Captures, "capture", slips)
    cells, _ = quick_cells(monkeypatch, wanted=("folded",))
    for cell in cells:
        for entry in cell.entries:
            assert (entry.status, entry.seconds) == (records.WRONG, [])
            assert entry.reason.startswith("replayed: map is off by")


def test_sdpa_says_which_implementation_it_is(monkeypatch):
    cells, _ = quick_cells(monkeypatch)
    notes = [entry.note for cell in cells for entry in cell.entries if entry.name == "sdpa"]
    assert len(notes) == 2
    assert all(note.startswith("fused attention: ") for note in notes)


@pytest.mark.parametrize("op", ["tokenize", "project"])
def test_flex_attention_computes_the_op(op):
    from benchmarks import gate, operands, peers, truth

    shape = cases.Shape(2, 4, 5, 16, 4)
    drawn, cotangents = operands.draw(op, shape, "fp32")
    expected = truth.solve(op, drawn, cotangents)
    (flex,) = (peer for peer in peers_gpu.GPU_PEERS[op] if peer.name == "compile flex")
    for layout in cases.LAYOUTS:
        inputs = {name: drawn[name] for name in peers.operand_names(flex.function)}
        inputs["x"] = operands.lay_out(inputs["x"], shape, layout)
        found = zip(truth.RESULTS[op], flex.function(*inputs.values()), strict=True)
        assert max(gate.errors(found, expected).values()) < 1e-5

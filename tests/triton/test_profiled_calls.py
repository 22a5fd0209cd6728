"""The calls that a profiler looks at, with the interpreter in the GPU's place."""

import json

import pytest
import torch

from tools.counters import profiled_calls
from tools.triton import calls
from vt_fast.backends.triton.samples import KERNELS, sample


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in is for the CPU")
def test_each_launch_between_start_and_stop_is_named(monkeypatch, tmp_path):
    steps = []

    def on_cpu(op, dtype, layout, sizes, device, backend):
        assert device == "cuda"
        call = sample(op, dtype, layout, sizes, "cpu", backend)
        return lambda: (steps.append("call"), call())[1]

    monkeypatch.setattr(calls, "sample", on_cpu)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, name, lambda name=name: steps.append(name))
    path = tmp_path / "launched"
    words = [word for op in KERNELS for word in (op, "fp32", "channels_last", "2x9x32x4")]
    profiled_calls.main(["triton", str(path), *words])
    assert steps == ["call", "start", "call", "stop"] * len(KERNELS)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for op, kernel in KERNELS.items():
        assert kernel in {line["kernel"] for line in lines if line["op"] == op}
    assert all(line["programs"] >= 1 and line["shape"] == "2x9x32x4" for line in lines)

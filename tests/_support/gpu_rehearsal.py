"""Runs of ``python -m benchmarks gpu`` with a stand-in for the GPU: all but the device itself is real."""

from benchmarks import cases, cli, gpu, records, timing
from benchmarks.ceilings import Ceilings
from benchmarks.measuring import measure
from benchmarks.trial import Trial, pose
from tests._support import standin


def options(*words):
    return cli._parser().parse_args(["gpu", *words])


def conduct(monkeypatch, path, *words, refuses=lambda number: False, prepare=lambda those: None):
    device, stand_in = standin.gpu(monkeypatch, refuses)
    run, status = gpu.conduct(gpu.plan(options(*words)), device, standin.GPU_MACHINE, path, prepare)
    return run, status, stand_in


def quick_cells(monkeypatch, refuses=lambda number: False, op="project", wanted=("folded", "sdpa")):
    device, stand_in = standin.gpu(monkeypatch, refuses)
    case = cases.Case(op, cases.Shape(2, 4, 5, 16, 4), "fp32", "channels_last")
    trial = Trial(case, pose(case), wanted, device)
    tops = Ceilings(case.dtype, quick=True, device=device)
    return list(measure(trial, cases.PASSES, tops, timing.QUICK)), stand_in


def one_cell(reached, dtype="bf16", which=cases.FORWARD, tokens=16):
    floor = records.Floor(1, 0, 100, [1.0], 1, [1.0])  # 100 bytes/s
    entry = records.Entry(
        "vt_fast triton", records.OURS, seconds=[1.0], eager_seconds=[3.0], timed_as="graph"
    )
    shape = cases.Shape(1, 2, 2, 8, tokens)
    return records.Cell("tokenize", shape, dtype, "nchw", None, which, int(100 * reached), floor, [entry])

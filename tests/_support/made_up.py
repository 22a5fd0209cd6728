"""Made-up runs for reports: numbers that nothing else in a file has."""

from benchmarks import cases, cli, records
from benchmarks.networks import records as networks
from benchmarks.networks.cases import STAGE
from benchmarks.networks.records import NetworkCell, NetworkRun, Side
from benchmarks.networks.sides import CONVOLUTIONAL, FUSED, INFERENCE, REFERENCE
from tests._support import standin

SHAPE = cases.Shape(3, 4, 5, 16, 4)
MACHINE = {
    "versions": {
        "torch": "2.99",
        "vt_fast": "0.77",
        "triton": "3.55",
        **dict.fromkeys(("python", "platform", "numpy"), "some"),
    },
    "devices": {"cpu": "Made-up <1> & Co", "cores": "2", "threads": 2, "instructions": "none", "gpu": "none"},
    "commit": {"hash": "0123456789abcdef", "dirty": False},
    "load": [0.1234567, 0.25],
}
SETTINGS = {"passes": list(cases.PASSES), "peers": None, "budget": {}, "quick": False, "threads": [1]}
GPU_SETTINGS = {"passes": [], "peers": [], "budget": {}, "quick": False, "device": "cuda:0", "tf32": False}


def cell(op="project", which=cases.FORWARD, dtype="fp32", layout="nchw", threads=1, ours=0.0051):
    floor = records.Floor(2, 12345678, 1 << 20, [0.011, 0.013], 987654321, [0.017, 0.019])
    entries = [
        records.Entry("vt_fast cpu", records.OURS, seconds=[ours, 2 * ours, 3 * ours], extra_bytes=1111),
        records.Entry("vt_fast torch", records.BACKEND, seconds=[0.0093], extra_bytes=2222),
        records.Entry("eager", records.PEER, seconds=[0.0313, 0.0333, 0.0373, 0.0411], extra_bytes=9999),
        records.Entry("folded", records.PEER, seconds=[0.0217, 0.0219], extra_bytes=7777),
        records.Entry("sdpa", records.PEER, records.WRONG, "dx is off by <much> & more | see"),
    ]
    return records.Cell(op, SHAPE, dtype, layout, threads, which, 4321, floor, entries)


def stack_cell(**changes):
    found = cell(op=cases.STACK, which=cases.BOTH, **changes)
    found.floor = None
    return found


def ops_run(cells=None, **settings):
    return records.Run(MACHINE, {**SETTINGS, **settings}, [cell(), stack_cell()] if cells is None else cells)


def network_cell(kind=STAGE, which=INFERENCE, name="thing, 7 x 7"):
    sides = [
        Side(CONVOLUTIONAL, 2_340_000_000, [0.0611, 0.0633, 0.0655], 12_345_678),
        Side(REFERENCE, None, [], None, "RuntimeError: out of <luck>"),
        Side(FUSED, 1_230_000_000, [0.0413, 0.0437, 0.0471], 8_765_432),
    ]
    return NetworkCell(kind, name, 3, "fp32", "nchw", 2, which, sides)


def save_networks(path, cells):
    networks.save(NetworkRun(MACHINE, standin.NETWORK_SETTINGS, cells), path)
    return path


def report(paths, folder, *words):
    assert cli.main(["report", *map(str, paths), "--output", str(folder), *words]) == 0

"""Peak memory on the CPU: the results and some tiles, but no temporary of the map's size."""

import pytest
import torch

from tests._support.pairs import pairs
from tests._support.problems import OPS, make, rounded
from vt_fast.backends.eager import tiles
from vt_fast.testing import peak_bytes

# One thread, as each thread of the backend "cpu" allocates tiles.
pytestmark = [pytest.mark.on_cpu, pytest.mark.usefixtures("one_thread")]
RESULT_MAPS = {"tokenize": (0, 1), "project": (1, 1), "project_tokenize": (1, 1)}


@pytest.fixture(autouse=True)
def plain_allocation(nan_in_uninitialised_memory):
    """Filling new memory with NaN would count."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("op", "layout", "dtype", "masked"),
    pairs(OPS, ["bnc", "nchw", "channels_last"], [torch.float32, torch.bfloat16], [False, True]),
)
def test_no_temporary_of_the_maps_size(op, layout, dtype, masked, backend, monkeypatch):
    monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", 1 << 14)
    options = ("mask",) if masked and op != "project" else ()
    problem = make(op, options, layout, channels=128, height=128, width=128, tokens=8, queries=8)
    operands = {name: rounded(value, dtype) for name, value in problem.operands.items()}
    one_map = operands["x"].numel() * operands["x"].element_size()
    # room for ten tiles in float32 and for the small operands, less than a quarter of a map in 16 bits
    allowed = 10 * 4 * (1 << 14) + 64 * 4 * 2 * 8 * 128
    if backend == "cpu":
        # it sums the small operands' gradients in up to 64 partial sums
        allowed = 10 * 4 * (1 << 14) + 64 * 4 * 3 * 8 * 128 + 64 * 4 * 2 * 8 * 128
    assert allowed < one_map / 4
    check_peaks(problem, operands, one_map, allowed)


@pytest.mark.parametrize(
    ("op", "sizes"),
    [
        ("tokenize", {"channels": 4, "tokens": 64}),
        ("project", {"channels": 8, "tokens": 64}),
        ("project_tokenize", {"channels": 4, "tokens": 32, "queries": 64}),
    ],
)
def test_tiles_are_sized_by_the_widest_array(op, sizes, monkeypatch):
    """More tokens than channels: the scores of a tile are then larger than its pixels."""
    monkeypatch.setitem(tiles._TILE_ELEMENTS, "cpu", 1 << 14)
    problem = make(op, (), "bnc", height=256, width=128, **sizes)
    operands = {name: rounded(value, torch.float32) for name, value in problem.operands.items()}
    one_map = operands["x"].numel() * operands["x"].element_size()
    allowed = 10 * 4 * (1 << 14) + 64 * 4 * 2 * 64 * 8
    check_peaks(problem, operands, one_map, allowed)


def check_peaks(problem, operands, one_map, allowed):
    """Raise if forward or backward allocate more than their maps and ``allowed`` bytes."""
    forward, backward = RESULT_MAPS[problem.op]

    def run_forward():
        return problem.call(operands, plain=False)

    assert peak_bytes(lambda: [result.detach() for result in run_forward()]) <= forward * one_map + allowed
    results = run_forward()
    arriving = [torch.ones_like(result) for result in results]
    leaves = [value for value in operands.values() if value.requires_grad]
    assert peak_bytes(lambda: torch.autograd.grad(results, leaves, arriving)) <= backward * one_map + allowed

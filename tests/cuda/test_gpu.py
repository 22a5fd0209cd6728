"""What only a GPU can show of the CUDA kernels: streams, graphs, memory, offsets beyond 32 bits."""

import pytest
import torch

import vt_fast
from tests._support import cuda_emulator
from tests._support.emulated_cases import problem
from tests._support.gpu_cases import prepared, same_bits
from tests._support.problems import OPS
from vt_fast import backends
from vt_fast.backends.contract import Tokenize
from vt_fast.testing import peak_bytes

pytestmark = pytest.mark.skipif(not cuda_emulator.REAL, reason="needs a GPU that runs the CUDA kernels")

SIZES = {"batch": 3, "channels": 256, "height": 14, "width": 14, "tokens": 16, "queries": 16}


def test_none_takes_these_kernels():
    x, queries = torch.randn(2, 40, 16), torch.randn(4, 16)
    assert backends.choose(None, Tokenize(x, queries, None, None, None, 1, False)) == "cuda"


def test_calls_that_they_do_not_take_get_another_backend():
    x, queries = torch.randn(2, 40, 17), torch.randn(4, 17)
    tokens = vt_fast.tokenize(x, queries)
    torch.testing.assert_close(tokens, vt_fast.tokenize(x, queries, backend="torch"))
    with pytest.raises(ValueError, match="must be a multiple of"):
        vt_fast.tokenize(x, queries, backend="cuda")


@pytest.mark.parametrize("op", OPS)
def test_bitwise_repeatable(op):
    call = prepared(problem(op, (), "nchw", **SIZES), torch.bfloat16)
    first = call()
    for _ in range(5):
        assert same_bits(call(), first)


@pytest.mark.parametrize("op", OPS)
def test_another_stream(op):
    call = prepared(problem(op, (), "channels_last", **SIZES), torch.bfloat16)
    expected = call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = call()
    stream.synchronize()
    assert same_bits(found, expected)


@pytest.mark.parametrize("op", OPS)
def test_a_cuda_graph(op):
    call = prepared(problem(op, (), "nchw", **SIZES), torch.bfloat16)
    operands = {name: value.detach() for name, value in call.operands.items()}
    expected = call.problem.call(operands, plain=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call.problem.call(operands, plain=False)
    for result in captured:
        result.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits(captured, expected)


def test_another_current_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, queries = torch.randn(2, 40, 16, device="cuda:1"), torch.randn(4, 16, device="cuda:1")
    with torch.cuda.device(0):
        tokens = vt_fast.tokenize(x, queries, backend="cuda")
    assert tokens.device == x.device
    torch.testing.assert_close(tokens, vt_fast.tokenize(x, queries, backend="torch"))


def test_workspace_does_not_grow_with_the_map():
    queries = torch.randn(16, 256, dtype=torch.bfloat16)
    peaks = []
    for pixels in (1 << 16, 1 << 18):
        x = torch.randn(1, pixels, 256, dtype=torch.bfloat16)
        vt_fast.tokenize(x, queries, backend="cuda")
        peaks.append(peak_bytes(lambda x=x: vt_fast.tokenize(x, queries, backend="cuda"), "cuda"))
    assert peaks[1] <= peaks[0] < 2**26


def test_no_memory_for_a_result():
    x = torch.randn(8, dtype=torch.bfloat16).expand(1 << 20, 1 << 20, 8)
    rows = torch.randn(4, 8, dtype=torch.bfloat16)
    # The result would take 16 TiB. Before 2.13, torch does not tell an op why.
    known = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
    with pytest.raises(torch.OutOfMemoryError if known else RuntimeError, match="cannot be allocated"):
        vt_fast.project(x, rows, rows, backend="cuda")


def test_offsets_beyond_32_bits():
    x = torch.zeros(2, (1 << 31) // 64 + 1000, 64, dtype=torch.bfloat16)
    x[1, -1000:] = torch.randn(1000, 64, dtype=torch.bfloat16)
    queries = torch.randn(2, 8, 64, dtype=torch.bfloat16)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    mask[1, -1000:] = True
    tokens = vt_fast.tokenize(x, queries, mask=mask, backend="cuda")
    expected = vt_fast.tokenize(x[1:, -1000:], queries[1:], backend="torch")
    torch.testing.assert_close(tokens[1:], expected, rtol=2e-2, atol=2e-2)
    assert not tokens[0].any()

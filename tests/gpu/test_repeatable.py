"""A call gives the same bits each time, also while the GPU does other work."""

import pytest
import torch

from tests._support import devices
from tests._support.gpu_cases import parts, same_bits, standard
from tests._support.problems import OPS

RUNS = 2 if devices.PRETENDED else 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_each_time(op, dtype):
    call = standard(op, dtype)
    if dtype == torch.float32:
        assert min(parts(call).values()) > 1, "nothing is put together from parts"
    first = call()
    for _ in range(RUNS):
        assert same_bits(call(), first)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_beside_other_work(op, dtype):
    call = standard(op, dtype)
    first = call()
    square, other = torch.randn(4096, 4096), torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    for _ in range(RUNS):
        with torch.cuda.stream(other):
            for _ in range(4):
                torch.mm(square, square)
        assert same_bits(call(), first)
    torch.cuda.synchronize()

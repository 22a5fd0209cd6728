"""Work goes to the current stream, and waits for no other."""

import pytest
import torch

from tests._support.gpu_cases import same_bits, standard
from tests._support.problems import OPS

pytestmark = pytest.mark.usefixtures("cuda")
# About a second; what is timed against it takes milliseconds once it is compiled.
CYCLES = 2 * 10**9


def warmed_up(op):
    """A call, its results, and a side stream on which it has already run, with memory of its own."""
    call, side = standard(op, torch.bfloat16), torch.cuda.Stream()
    expected = call()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            assert same_bits(call(), expected)
    torch.cuda.synchronize()
    return call, expected, side


@pytest.mark.parametrize("op", OPS)
def test_a_side_stream_gives_the_same(op):
    call, expected, side = warmed_up(op)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results = call()
    torch.cuda.current_stream().wait_stream(side)
    assert same_bits(results, expected)


@pytest.mark.parametrize("op", OPS)
def test_nothing_waits_for_the_default_stream(op):
    call, expected, side = warmed_up(op)
    slept = torch.cuda.Event()
    torch.cuda._sleep(CYCLES)
    slept.record()
    with torch.cuda.stream(side):
        right = same_bits(call(), expected)  # looks at what this stream has, and waits for it alone
    busy = not slept.query()
    torch.cuda.synchronize()
    assert right
    assert busy, "the side stream waited for the default stream"


@pytest.mark.parametrize("op", OPS)
def test_work_comes_after_what_the_stream_has_to_do(op):
    call, expected, side = warmed_up(op)
    x = call.operands["x"]
    with torch.no_grad(), torch.cuda.stream(side):
        kept = x.clone()
        x.zero_()
        torch.cuda._sleep(CYCLES // 10)
        x.copy_(kept)
    with torch.cuda.stream(side):
        right = same_bits(call(), expected)
    torch.cuda.synchronize()
    assert right

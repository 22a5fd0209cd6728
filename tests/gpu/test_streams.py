"""Work goes to the current stream, and waits for no other."""

import pytest
import torch

from tests._support.gpu_cases import same_bits, standard
from tests._support.problems import OPS
from vt_fast import nn

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


def test_a_stream_keeps_no_operands_of_another():
    """`freeze`: the kernels that fold them may not have run yet."""
    options = {"position": nn.LinearPositionCode(4, 5), "token_linear": False, "token_channels": 21}
    module = nn.freeze(nn.FilterTokenizer(16, 4, **options).cuda().eval())
    x, kept = torch.randn(2, 16, 5, 7, device="cuda"), []
    with torch.no_grad():
        for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
            stream.wait_stream(torch.cuda.default_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    module(x)
                    kept.append([entry.value for entry in module._kept.entries.values()])
    first, again, other, last = kept
    assert first
    for mine, mine_again, others, others_again in zip(first, again, other, last, strict=True):
        assert mine is mine_again
        assert others is others_again
        assert mine is not others

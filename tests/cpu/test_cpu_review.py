"""What a line-by-line review of the CPU kernels found."""

import pytest
import torch

import vt_fast
from vt_fast import backends

NOT_BUILT = dict(backends.report())["cpu"]
pytestmark = pytest.mark.skipif(NOT_BUILT is not None, reason=str(NOT_BUILT))


@pytest.fixture(params=["baseline", "avx2", "avx512", "avx512_bf16"])
def instruction_set(request):
    facts = pytest.importorskip("vt_fast._native.build_facts")
    if request.param not in facts.supported():
        pytest.skip("not supported by this processor")
    facts.choose(request.param)
    yield request.param
    facts.choose(None)


def every_float16():
    """All of them but NaN and infinity, as a map of 33 channels: whole vectors and a tail."""
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = values[values.isfinite()]
    return torch.cat([values, values.new_zeros(-len(values) % 33)]).view(1, -1, 33)


@pytest.mark.parametrize("flush", [False, True])
def test_float16_is_read_exactly_even_where_subnormal_floats_are_flushed(instruction_set, flush):
    x, zeros = every_float16(), torch.zeros(1, 33, dtype=torch.float16)
    torch.set_flush_denormal(flush)
    try:
        same = vt_fast.project(torch.zeros_like(x), zeros, zeros, residual=x, backend="cpu")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(same, x)

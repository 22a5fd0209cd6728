"""Every element of a result is written: the allocator hands out memory full of NaN."""

import pytest
import torch

from tests._support.gpu_cases import same_bits, standard
from tests._support.problems import LAYOUTS, OPS

pytestmark = pytest.mark.usefixtures("cuda", "own_allocation")


def poison():
    """Leave NaN in all memory that the caching allocator will give out next: small blocks and large."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    # Large ones first: what is left between them is filled by the smaller ones.
    sizes = [
        1 << 28,
        *(size for size in (1 << 22, 1 << 19, 1 << 18, 1 << 14, 1 << 10, 128) for _ in range(32)),
    ]
    poisoned = [torch.full((size,), torch.nan) for size in sizes]
    del poisoned


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "bnc, sliced"])
@pytest.mark.parametrize("op", OPS)
def test_nothing_is_left_unwritten(op, layout):
    assert layout in LAYOUTS
    dtype = torch.bfloat16 if layout == "nchw" else torch.float32
    call = standard(op, dtype, layout)
    expected = call()
    torch.manual_seed(1)
    poison()
    fresh = [torch.empty(size) for size in (100, 10**4, 10**6, 10**7)]
    assert all(each.isnan().any() for each in fresh), "the poison does not reach new tensors"
    del fresh
    assert same_bits(call(), expected)

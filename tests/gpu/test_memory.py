"""A call allocates its results and less than a tenth of the map beside them."""

import pytest
import torch

from tests._support.gpu_cases import SHAPE, prepared
from tests._support.problems import OPS, make
from vt_fast.testing import peak_bytes

pytestmark = pytest.mark.usefixtures("cuda", "own_allocation")
MAPS = {"tokenize": (0, 1), "project": (1, 1), "project_tokenize": (1, 1)}  # among the results
LAYOUTS = ["bnc", "nchw", "channels_last", "nchw, sliced"]
# Parts of sums may take 5 % (vt_fast.backends.triton.schedule), small operands and the allocator the rest.
SHARE = 0.1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_no_temporary_of_the_maps_size(op, layout, masked):
    options = ("mask",) if masked and op != "project" else ()
    call = prepared(make(op, options, layout, **(SHAPE | {"height": 1024, "width": 256})), torch.bfloat16)
    call()
    one_map = call.operands["x"].numel() * call.operands["x"].element_size()
    forward, backward = MAPS[op]
    with torch.no_grad():
        assert peak_bytes(call.forward, "cuda") <= (forward + SHARE) * one_map
    results = call.forward()

    def derivative():
        return torch.autograd.grad(results, call.leaves, call.arriving)

    assert peak_bytes(derivative, "cuda") <= (backward + SHARE) * one_map

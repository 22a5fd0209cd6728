"""What a benchmark on a GPU compiles ahead is what its cases launch."""

import pytest
import torch

from benchmarks import ahead, cases, contenders, operands
from benchmarks.peers import operand_names
from tests._support.variants import variant
from vt_fast.backends.triton.ahead import requests


def launched(case):
    """Forward alone, and forward and backward, as the benchmark calls them; nothing is computed."""
    drawn, arriving = operands.draw(case.op, case.shape, case.dtype)

    def laid_out(value):
        is_map = value.dim() == 3 and value.shape[1] == case.shape.pixels
        return operands.lay_out(value, case.shape, case.layout) if is_map else value

    function = contenders._ours(case.op, "triton")
    leaves = [laid_out(drawn[name]).requires_grad_() for name in operand_names(function)]

    def both():
        with torch.no_grad():
            function(*leaves)
        torch.autograd.grad(function(*leaves), leaves, [laid_out(value) for value in arriving])

    return requests(both)


# The first map's rows of pixels are multiples of 16 and the others' are not.
SHAPES = (cases.Shape(2, 4, 16, 64, 16), cases.Shape(3, 14, 14, 64, 16), cases.Shape(2, 6, 8, 32, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors are on the CPU")
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", cases.OPS)
def test_nothing_is_left_to_be_compiled(op, shape, layout):
    for dtype in ("bf16", "fp32"):
        case = cases.Case(op, shape, dtype, layout)
        needed = {variant(each) for each in launched(case)}
        assert len(needed) >= 2
        asked = ahead.requests(case, cases.PASSES, torch.device("cpu"))
        assert needed <= {variant(each) for each in asked}

"""A benchmark on a GPU compiles ahead what its cases launch."""

import pytest
import torch

from benchmarks.problems import OpProblem, requests
from benchmarks.shapes import LAYOUTS, OPS, PASSES, Case, Shape
from tests._support.variants import variant
from vt_fast.backends.triton import ahead

CPU = torch.device("cpu")
# Rows of pixels are multiples of 16 in the first map only.
SHAPES = (Shape(2, 4, 16, 64, 16), Shape(3, 14, 14, 64, 16), Shape(2, 6, 8, 32, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors are on the CPU")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", OPS)
def test_every_launch_was_compiled_ahead(op, shape, layout):
    for dtype in ("bf16", "fp32"):
        case = Case(op, shape, dtype, layout)
        problem = OpProblem(case, CPU, [])
        (ours,) = (each for each in problem.contenders if each.name == "vt_fast triton")
        for which in PASSES:
            launched = {variant(each) for each in ahead.requests(problem.call(ours, which))}
            assert launched
            assert launched <= {variant(each) for each in requests(case, PASSES, CPU)}

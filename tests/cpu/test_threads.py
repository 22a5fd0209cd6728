"""Results and gradients have the same bits with any number of threads and in every run."""

import pytest
import torch

from tests._support.instruction_sets import each
from tests._support.judging import DTYPES, short
from tests._support.pairs import pairs
from tests._support.problems import CASES, OPS, make

THREADS = [1, 2, 3, 8, 2]


def check(problem, dtype):
    for name in each():
        first = None
        for threads in THREADS:
            torch.set_num_threads(threads)
            found = problem.solve(dtype)
            first = first or found
            for key, value in found.items():
                same = torch.equal(value.view(torch.uint8), first[key].view(torch.uint8))
                assert same, f"{key} with {threads} threads on {name}"


# (batch, height, width): chunks of one sample, chunks of several samples, one sample a unit, several a unit
SHAPES = [(1, 25, 33), (2, 20, 21), (9, 9, 11), (70, 3, 4)]


@pytest.mark.parametrize(("case", "dtype", "shape"), pairs(CASES, DTYPES, SHAPES), ids=short)
def test_threads_do_not_matter(case, dtype, shape):
    op, options = case
    batch, height, width = shape
    layout = ("bnc", "nchw")[(batch + len(options)) % 2]
    # enough work for several threads
    channels = 66 if "num_heads" in options else 67
    check(make(op, options, layout, batch=batch, channels=channels, height=height, width=width), dtype)


@pytest.mark.parametrize(
    ("op", "layout", "dtype"), pairs(OPS, ["bnc", "nchw"], [torch.float32, torch.bfloat16]), ids=short
)
def test_many_tokens(op, layout, dtype):
    problem = make(op, ("shared",), layout, batch=3, channels=64, height=16, width=20, tokens=64, queries=33)
    check(problem, dtype)

"""Every op, option, layout and dtype on every instruction set, in sizes around the kernels' block sizes."""

import itertools
import random

import pytest
import torch

from tests._support.instruction_sets import on_each, supported
from tests._support.judging import DTYPES, check, short
from tests._support.pairs import pairs
from tests._support.problems import CASES, LAYOUTS, OPS, OPTIONS, make

# 28 and 50: three vectors and a half of doubles, of floats
TOKENS = [1, 7, 8, 9, 16, 17, 28, 33, 50, 64, 130]
CHANNELS = [1, 2, 3, 15, 16, 17, 31, 33, 64, 130, 257]
SIZES = {1: (1, 1), 7: (1, 7), 31: (31, 1), 33: (3, 11), 196: (14, 14), 300: (12, 25), 1000: (8, 125)}
BATCHES = [1, 2, 9, 70]
# multiplications of a call, which bounds the reference's time
MOST_WORK = 4_000_000


@pytest.mark.parametrize(
    ("case", "layout", "dtype"), pairs(CASES, ["bnc", "nchw", "channels_last, sliced"], DTYPES), ids=short
)
def test_options(case, layout, dtype):
    check(make(*case, layout, height=6, width=31, channels=34), dtype)


@pytest.mark.parametrize(("op", "layout", "dtype"), pairs(OPS, list(LAYOUTS), DTYPES), ids=short)
def test_layouts(op, layout, dtype):
    options = ("pixel_bias",) if op == "tokenize" else ("residual", "wide")
    check(make(op, options, layout, height=9, width=37, channels=18), dtype)


def dealt(values, count, choose):
    """``count`` values in random order, each about equally often."""
    values = [values[index % len(values)] for index in range(count)]
    choose.shuffle(values)
    return values


SIZE_CASES = 66  # of each op


def size_cases(op):
    """Each number of tokens, channels, pixels and samples several times, in random combinations."""
    choose = random.Random(op)
    columns = [
        dealt(values, SIZE_CASES, choose)
        for values in (TOKENS, TOKENS, CHANNELS, list(SIZES), BATCHES, list(LAYOUTS), OPTIONS[op], DTYPES)
    ]
    cases = []
    for tokens, queries, channels, pixels, batch, layout, options, dtype in zip(*columns, strict=True):
        if "num_heads" in options and channels % 2:
            options = ("shared",)
        work = max(tokens, queries) * channels
        # reduce the batch first, then the pixels
        batch = max([b for b in BATCHES if b <= batch and b * pixels * work <= MOST_WORK], default=1)
        pixels = max([n for n in SIZES if n <= pixels and batch * n * work <= MOST_WORK], default=7)
        height, width = SIZES[pixels]
        sizes = {"height": height, "width": width, "tokens": tokens, "queries": queries}
        cases.append((options, layout, sizes | {"batch": batch, "channels": channels}, dtype))
    return cases


@pytest.mark.parametrize("index", range(SIZE_CASES))
@pytest.mark.parametrize("op", OPS)
def test_sizes(op, index):
    options, layout, sizes, dtype = size_cases(op)[index]
    check(make(op, options, layout, **sizes), dtype)


# Channels are at most one block of 4 or 8 rows of `expand`, whole ones, or some and a rest. Up to 128 of its
# lanes are copied, of one token or two.
@pytest.mark.parametrize("tokens", [128, 129, 256, 257])
@pytest.mark.parametrize("channels", [4, 8, 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_tokens_over_innermost_pixels(dtype, channels, tokens):
    check(make("project", ("residual",), "nchw", width=11, channels=channels, tokens=tokens), dtype)


# Every other case has the other layout.
@pytest.mark.parametrize(("case", "layout"), list(zip(CASES, itertools.cycle(["bnc", "nchw"]))), ids=short)
def test_gradcheck(case, layout):
    problem = make(*case, layout, channels=4, height=2, width=3, tokens=2, queries=2)
    on_each(problem.gradcheck)(fast=layout == "nchw")


def test_the_baseline_is_the_first_of_the_instruction_sets():
    names = supported()
    assert names[0] == "baseline"
    assert len(set(names)) == len(names)

"""Results and gradients in every dtype and layout, for the sizes that tiles and chunks divide or do not."""

import itertools
import random

import pytest
import torch

from tests._support import devices
from tests._support.comparing import assert_solved
from tests._support.problems import OPS, OPTIONS, make

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYOUTS = ("bnc", "nchw", "channels_last", "nchw, sliced", "channels_last, sliced", "nchw, transposed")
TOKENS = (1, 7, 8, 16, 17, 64, 128)
CHANNELS = (16, 64, 192, 256, 320, 768, 1024, 2048)
MAPS = ((1, 1), (7, 7), (14, 14), (1, 197), (56, 56))
if devices.PRETENDED:
    TOKENS, CHANNELS, MAPS = (1, 7, 17), (16, 24, 80), ((1, 1), (7, 7), (1, 37))

ROUNDS, LENGTH = 3, 6 if devices.PRETENDED else 24


def a_round(seed):
    """LENGTH cases in which each value of each factor comes equally often, with any of the others."""
    order = random.Random(seed)

    def often(values):
        chosen = [values[i % len(values)] for i in range(LENGTH)]
        order.shuffle(chosen)
        return chosen

    return list(zip(*map(often, (OPS, DTYPES, LAYOUTS, TOKENS, CHANNELS, MAPS)), strict=True))


# One round is those that a GPU is asked for by default.
CASES = list(itertools.chain.from_iterable(zip(*map(a_round, range(ROUNDS)), strict=True)))


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_round_covers_all_values(seed):
    for chosen, values in zip(
        zip(*a_round(seed), strict=True), (OPS, DTYPES, LAYOUTS, TOKENS, CHANNELS, MAPS), strict=True
    ):
        assert set(chosen) == set(values)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("op", "dtype", "layout", "tokens", "channels", "size"), CASES)
def test_sizes(op, dtype, layout, tokens, channels, size):
    height, width = size
    problem = make(
        op, (), layout, channels=channels, height=height, width=width, tokens=tokens, queries=tokens
    )
    assert_solved(problem, dtype)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("op", "options", "dtype"),
    [(op, options, dtype) for op in OPS for options, dtype in zip(OPTIONS[op], itertools.cycle(DTYPES))],
)
def test_options_of_maps_of_a_usual_size(op, options, dtype):
    sizes = (
        {"channels": 16} if devices.PRETENDED else {"channels": 96, "height": 28, "width": 28, "tokens": 16}
    )
    assert_solved(make(op, options, "channels_last", **sizes), dtype)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_large_maps_of_several_samples(op, layout):
    """They have settings of their own, and programs that go from sample to sample."""
    size = {"channels": 16} if devices.PRETENDED else {"channels": 256, "height": 96, "width": 64}
    assert_solved(make(op, ("shared",), layout, batch=3, tokens=8, queries=8, **size), torch.bfloat16)

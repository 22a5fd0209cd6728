"""Results and gradients in every dtype and layout, for the sizes that tiles and chunks divide or do not."""

import itertools

import devices
import pytest
import torch
from comparing import assert_solved
from problems import OPS, OPTIONS, make

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYOUTS = ("bnc", "nchw", "channels_last", "nchw, sliced", "channels_last, sliced", "nchw, transposed")
TOKENS = (1, 7, 8, 16, 17, 64, 128)
CHANNELS = (16, 64, 192, 256, 320, 768, 1024, 2048)
MAPS = ((1, 1), (7, 7), (14, 14), (1, 197), (56, 56))
if devices.PRETENDED:
    TOKENS, CHANNELS, MAPS = (1, 7, 17), (16, 24, 80), ((1, 1), (7, 7), (1, 37))

# Every value with every other of the next list in turn: a cover, not the product.
COUNT = 12 if devices.PRETENDED else 96
CASES = [
    pytest.param(
        OPS[i % 3],
        DTYPES[i // 3 % 3],
        LAYOUTS[i // 5 % 6],
        TOKENS[i % len(TOKENS)],
        CHANNELS[i // 2 % len(CHANNELS)],
        MAPS[i // 4 % len(MAPS)],
        id=f"{i}",
    )
    for i in range(COUNT)
]


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

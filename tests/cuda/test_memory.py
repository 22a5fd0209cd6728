"""Where operands and results lie: far apart, at any alignment, next to memory of others.

The emulator checks each call for more: it must write each byte of a result once, and copy each of a map once.
"""

import mmap

import pytest
import torch

from tests._support import cuda_emulator
from tests._support.emulated_cases import DTYPES, LAYOUTS, InPlace, in_place, problem
from tests._support.judging import round_operands, short
from tests._support.pairs import pairs
from tests._support.problems import OPS

pytestmark = pytest.mark.skipif(cuda_emulator.REAL, reason="places operands where the emulator sees them")

OPTIONS_OF_EVERY_KIND = [
    ("tokenize", ("mask", "pixel_bias", "extra_values")),
    ("tokenize", ("num_heads",)),
    ("project", ("residual", "wide", "num_heads", "token_bias")),
    (
        "project_tokenize",
        ("mask", "pixel_bias", "extra_values", "residual", "wide", "num_heads", "token_bias"),
    ),
    ("project_tokenize", ("shared",)),
]


@pytest.mark.parametrize(
    ("case", "layout", "dtype"),
    [
        *pairs(OPTIONS_OF_EVERY_KIND, LAYOUTS, DTYPES),
        # Rows of pixels in float32 follow each other, so that heads are never far apart.
        (("tokenize", ("num_heads",)), "nchw", torch.bfloat16),
    ],
    ids=short,
)
def test_offsets_of_64_bits(case, layout, dtype):
    """With samples and rows of all operands and results 2^31 elements apart, results are the same."""
    found = problem(*case, layout, channels=32, height=4, width=6)
    round_operands(found, dtype)
    with cuda_emulator.emulated():
        expected = found.solve(dtype)
    with cuda_emulator.emulated(far=True):
        for name, value in found.solve(dtype).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("op", OPS)
def test_a_map_with_samples_far_apart(op, layout):
    """As above, but as callers see it: the map is a view of 8 GB of memory that is not touched."""
    near = in_place(problem(op, (), layout, channels=16, height=4, width=6), torch.bfloat16)
    x, distance = near.operands["x"], 2**31 + 8
    no_reserve = 0x4000  # MAP_NORESERVE; mmap has the name since Python 3.13
    memory = mmap.mmap(-1, 4 * distance, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    far = (
        torch.frombuffer(memory, dtype=torch.bfloat16)
        .as_strided(x.shape, (distance, *x.stride()[1:]))
        .copy_(x)
    )
    with cuda_emulator.emulated():
        expected = near.solve(torch.bfloat16)
        found = InPlace(op, near.operands | {"x": far}, near.options).solve(torch.bfloat16)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


# Elements between pixels, rows of pixels and samples, and before the first, beside those of a dense map.
GAPS = [0, 1, 2, 4, 8]


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(
    ("layout", "height", "width"), [("bnc", 4, 6), ("nchw", 4, 6), ("nchw", 3, 7), ("channels_last", 4, 6)]
)
@pytest.mark.parametrize("op", OPS)
def test_views_of_larger_maps(op, layout, height, width, dtype):
    """Results are those of a dense map, whether the kernels read a view in place or not."""
    options = ("residual",) if op != "tokenize" else ()
    dense = in_place(problem(op, options, layout, channels=32, height=height, width=width), dtype)
    with cuda_emulator.emulated():
        expected = dense.solve(dtype)
    between_pixels_or_channels = [(0, gap, 0, 0) for gap in GAPS]
    for index, gaps in enumerate([*pairs(GAPS, GAPS, GAPS, GAPS), *between_pixels_or_channels]):
        maps = {
            name: with_gaps(dense.operands[name], *gaps) for name in {"x", "residual"} & dense.operands.keys()
        }
        with cuda_emulator.emulated(seed=index + 1, copies=index % 3):
            found = InPlace(op, dense.operands | maps, dense.options).solve(dtype)
        for name, value in found.items():
            assert torch.equal(value, expected[name]), (name, gaps)


def with_gaps(value, *gaps_and_offset):
    """The same values and order of dimensions, in memory of NaN."""
    *gaps, offset = gaps_and_offset
    strides, step = [0] * value.dim(), 1
    order = sorted(range(value.dim()), key=value.stride)
    for dim, gap in zip(order, [0, *gaps[1 - value.dim() :]], strict=True):
        strides[dim] = step + gap
        step = strides[dim] * value.shape[dim]
    memory = torch.full((step + offset,), torch.nan, dtype=value.dtype)
    return memory.as_strided(value.shape, strides, offset).copy_(value)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("op", OPS)
def test_small_operands_at_any_address(op, dtype):
    options = {
        "tokenize": ("mask", "pixel_bias", "extra_values"),
        "project": ("token_bias",),
        "project_tokenize": ("mask", "pixel_bias", "extra_values", "token_bias"),
    }
    aligned = in_place(problem(op, options[op], channels=32), dtype)
    with cuda_emulator.emulated():
        expected = aligned.solve(dtype)
        for name in aligned.operands.keys() - {"x"}:
            value = aligned.operands[name]
            for offset in (1, 4):
                moved = (
                    torch.ones(value.numel() + offset, dtype=value.dtype)[offset:]
                    .view(value.shape)
                    .copy_(value)
                )
                found = InPlace(op, aligned.operands | {name: moved}, aligned.options).solve(dtype)
                for of, result in found.items():
                    assert torch.equal(result, expected[of]), (name, offset, of)


@pytest.mark.parametrize("layout", ["bnc", "nchw", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_aligned_views_are_not_copied(op, layout):
    gaps = (8 * (layout != "nchw"), 0, 8, 8) if layout != "bnc" else (0, 8, 8, 8)
    found = in_place(problem(op, (), layout, channels=32, height=4, width=6), torch.bfloat16)
    found.operands["x"] = with_gaps(found.operands["x"], *gaps)
    with cuda_emulator.emulated(), torch.no_grad(), torch.profiler.profile() as profile:
        found.call(found.leaves(), plain=False)
    assert not [event.key for event in profile.key_averages() if event.key == "aten::copy_"]

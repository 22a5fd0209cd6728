"""Masked pixels are not read and huge logits do not overflow, on maps of many tiles, in 16 bits."""

import pytest
import torch

from tests._support import devices
from tests._support.comparing import assert_solved, largest_finite, summed_terms
from tests._support.gpu_cases import SHAPE
from tests._support.problems import OPS, make
from vt_fast.testing import assert_as_accurate

SIZES = SHAPE if devices.PRETENDED else SHAPE | {"height": 56, "width": 56}
TILE = 32
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("op", ["tokenize", "project_tokenize"])
def test_what_is_masked_is_not_looked_at(op, dtype, junk):
    problem = make(op, ("mask", "pixel_bias", "extra_values", "shared", "no map"), "nchw", **SIZES)
    mask = problem.operands["mask"]
    mask[0, : 5 * TILE] = False  # whole tiles, at the begin and further on
    mask[0, 7 * TILE : 9 * TILE] = False
    mask[1] = False  # a whole sample
    problem.round_operands(dtype)
    exact, plain = problem.solve(plain=True), problem.solve(dtype, plain=True)
    problem.operands["x"] = torch.where(
        mask.unflatten(1, (SIZES["height"], -1))[:, None], problem.operands["x"], junk
    )
    found = problem.solve(dtype)
    lse, terms = largest_finite(exact[problem.lse]), summed_terms(problem)
    for name, value in found.items():
        assert_as_accurate(value, exact[name], plain[name], name, lse=lse, terms=terms)
    assert (found["result 0"][1] == 0).all()
    assert (found["result 1"][1] == -torch.inf).all()
    assert (found["dx"].flatten(2).transpose(1, 2)[~mask] == 0).all()
    assert (found["dpixel_bias"][~mask] == 0).all()


@pytest.mark.parametrize("op", ["tokenize", "project_tokenize"])
def test_a_weight_of_minus_infinity_masks(op):
    problem = make(op, ("pixel_bias", "no map"), "channels_last", **SIZES)
    problem.operands["pixel_bias"][:, 10:200] = -torch.inf
    assert_solved(problem, torch.bfloat16)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("op", OPS)
def test_huge_logits_overflow_nowhere(op, dtype):
    """Logits are multiples of 2^12 and far above what float16 holds: weights are 0, 1 or those of ties."""
    problem = make(op, ("shared",), "nchw", **SIZES)
    for name, unit in {"x": 16, "queries": 256, "keys": 256, "values": 16}.items():
        if name in problem.operands:
            value = problem.operands[name]
            problem.operands[name] = torch.randint_like(value, -8, 9) * unit
    exact = problem.solve(plain=True)
    found = problem.solve(dtype)
    if problem.lse:
        assert exact[problem.lse].abs().max() > torch.finfo(torch.float16).max
    for name, value in found.items():
        finite = exact[name].abs() < torch.finfo(dtype).max  # a gradient may be larger than float16 has
        assert value[finite].isfinite().all(), name
    # What is chosen is only rounded.
    expected = exact["result 0"]
    assert_as_accurate(found["result 0"], expected, expected.to(dtype), "result 0")

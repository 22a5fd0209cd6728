"""Random problems for property tests, as hypothesis draws them: small, in float64, with any options."""

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import settings
from hypothesis import strategies as st

from tests._support.problems import make
from vt_fast import functional

small = st.integers(1, 3)
seeds = st.integers(0, 2**32 - 1)

OPTIONAL = {
    "tokenize": ("shared", "num_heads", "mask", "pixel_bias", "extra_values", "scale"),
    "project": ("shared", "num_heads", "token_bias", "shared bias", "no residual", "residual", "scale"),
}
OPTIONAL["project_tokenize"] = (*OPTIONAL["project"], "mask", "pixel_bias", "extra_values", "no map")
# an option, and what it does not go with
EXCLUSIVE = {
    "tokenize": ("extra_values", "num_heads"),
    "project": ("residual", "no residual"),
    "project_tokenize": ("residual", "no residual"),
}


def properties(function):
    """A property test: 40 examples, the same in each run."""
    return settings(deadline=None, max_examples=40, derandomize=True)(function)


def randn(*shape):
    """Like torch.randn, in float64."""
    return torch.randn(*shape, dtype=torch.float64)


@st.composite
def problems(draw, op, always=(), never=(), batch=small):
    """A problem of any small size with any options of the op, but for some that it has always or never."""
    allowed = [option for option in OPTIONAL[op] if option not in never]
    options = draw(st.sets(st.sampled_from(allowed))) | set(always)
    if EXCLUSIVE[op][0] in options:
        options.discard(EXCLUSIVE[op][1])
    torch.manual_seed(draw(seeds))
    return make(
        op,
        tuple(sorted(options)),
        batch=draw(batch),
        channels=2 * draw(small),
        height=draw(small),
        width=draw(small),
        tokens=draw(small),
        queries=draw(small),
    )


def solver(problem):
    """The problem's op as a function of its operands."""
    return lambda **operands: getattr(functional, problem.op)(**problem.arguments(operands))


def samples_with_pixels(problem):
    """(B,) bool: the samples that are not fully masked."""
    mask = problem.operands.get("mask", torch.ones(problem.operands["x"].shape[:2], dtype=torch.bool))
    return mask.any(1)


def at_pixels(operands, keep):
    """The operands at the pixels ``keep`` (indices or a slice) alone."""

    def chosen(name, value):
        if name in ("x", "residual", "mask", "pixel_bias"):
            return value[:, keep]
        return value[keep] if name == "extra_values" else value

    return {name: chosen(name, value) for name, value in operands.items()}

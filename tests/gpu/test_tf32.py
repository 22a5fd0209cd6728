"""Products of float32 maps follow torch's own switch, whichever of its two names sets it."""

import pytest
import torch

from tests._support import devices
from tests._support.comparing import largest_finite, summed_terms
from tests._support.gpu_cases import SHAPE
from tests._support.problems import OPS, make
from vt_fast.testing import assert_as_accurate

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def switch_as_it_was():
    before = MATMUL.allow_tf32
    yield
    if hasattr(MATMUL, "fp32_precision"):
        MATMUL.fp32_precision = "none"
    MATMUL.allow_tf32 = before


def old(allowed):
    MATMUL.allow_tf32 = allowed


def new(allowed):
    MATMUL.fp32_precision = "tf32" if allowed else "ieee"


NAMES = [
    pytest.param(old, id="allow_tf32"),
    pytest.param(
        new,
        id="fp32_precision",
        marks=pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="torch has no such name yet"),
    ),
]


@pytest.mark.parametrize("switch", NAMES)
@pytest.mark.parametrize("op", OPS)
def test_off_it_is_as_accurate_as_ieee(op, switch):
    switch(False)
    check(make(op, (), "nchw", **SHAPE), torch.float32)


@pytest.mark.parametrize("switch", NAMES)
@pytest.mark.parametrize("op", OPS)
def test_on_it_is_as_accurate_as_its_mantissa(op, switch):
    """That of TF32 has the ten bits of float16's. Tensor cores cut the others off; Triton rounds nothing."""
    problem = make(op, (), "nchw", **SHAPE)
    switch(False)
    off = problem.solve(torch.float32)
    switch(True)
    check(problem, torch.float16, truncates=True)
    check_switched(problem.solve(torch.float32), off)


def check(problem, yardstick, truncates=False):
    """In float32 as accurate as plain PyTorch in another dtype, that of the rounded operands included."""
    exact, plain = problem.solve(plain=True), problem.solve(yardstick, plain=True)
    lse, terms = largest_finite(exact[problem.lse]) if problem.lse else 0.0, summed_terms(problem)
    for name, value in problem.solve(torch.float32).items():
        assert_as_accurate(value, exact[name], plain[name], name, lse=lse, terms=terms, truncates=truncates)


def check_switched(on, off):
    """On a GPU the bits differ; the interpreter knows no TF32."""
    if not devices.PRETENDED:
        assert not torch.equal(on["result 0"], off["result 0"])

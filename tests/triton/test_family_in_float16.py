"""Weights and normalised pixels that float16 cannot hold, against the reference in float64."""

import pytest
import torch

from tests.triton.test_family import BAGS, FORMS, OFFSETS, SETTINGS
from vt_fast import functional
from vt_fast.backends.triton.settings import using
from vt_fast.reference import ops as reference


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def draw(*sizes, by=1.0):
    return (by * torch.randn(sizes)).half()


def compare(form, op, arriving, tolerance=4e-3, **operands):
    """Results and gradients of floating operands agree, up to a share of their largest number in each row."""
    both = []
    for exact in (True, False):
        given = {}
        for name, value in operands.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value = (value.double() if exact else value).detach().requires_grad_()
            given[name] = value
        with using(SETTINGS[form]):
            if exact:
                results = getattr(reference, op)(**given)
            else:
                results = getattr(functional, op)(**given, backend="triton")
            results = results if isinstance(results, tuple) else (results,)
            wanted = {name: value for name, value in given.items() if getattr(value, "requires_grad", False)}
            grads = torch.autograd.grad(results[0], list(wanted.values()), arriving.to(results[0]))
        both.append(
            {f"result {i}": each for i, each in enumerate(results)} | dict(zip(wanted, grads, strict=True))
        )
    expected, found = both
    for name, value in found.items():
        exact = expected[name]
        largest = exact.nan_to_num(neginf=0).abs().amax(-1, keepdim=True).clamp_min(1e-30)
        off = torch.where(value == exact, 0, (value.double() - exact).abs() / largest)  # -inf too
        assert off.max() < tolerance, f"{name}: {off.max()}"


@FORMS
@pytest.mark.parametrize("bags", [False, True], ids=["samples", "bags"])
def test_a_constant_pixel_is_normalised(form, bags):
    """Its deviation is the root of eps, whose inverse is beyond float16."""
    x = draw(47, 24) if bags else draw(2, 35, 24)
    x[..., 4, :] = 0
    queries = draw(5, 24, by=0.2)
    compare(
        form, "tokenize", draw(BAGS if bags else 2, 5, 24, by=1e-2), tolerance=1e-2, x=x, queries=queries,
        layer_norm_eps=1e-12, return_stats=True, offsets=torch.tensor(OFFSETS) if bags else None,
    )  # fmt: skip


# By what values and the arriving gradient are multiplied, so that all but the weights are in range.
EXPONENTS = pytest.mark.parametrize(
    ("logit", "by", "arriving"), [(12.0, 1e-3, 3e-3), (-17.0, 1e4, 1e3)], ids=["large", "small"]
)


@FORMS
@EXPONENTS
def test_exponentials(form, logit, by, arriving):
    compare(
        form, "project", draw(2, 35, 24, by=arriving), x=draw(2, 35, 24), keys=draw(2, 6, 12, by=0.05),
        values=draw(3, 24, by=by), num_heads=2, normalize="exp",
        token_bias=torch.full((6,), logit, dtype=torch.float16),
    )  # fmt: skip


def test_exponentials_of_heads_that_differ():
    """A head's weights are not rounded by the size of another's."""
    sizes = torch.tensor([1e-3] * 12 + [1e4] * 12)
    operands = {
        "x": draw(2, 35, 24),
        "keys": draw(6, 12, by=0.05),
        "values": (torch.randn(3, 24) * sizes).half(),
        "token_bias": torch.tensor([12.0] * 3 + [-17.0] * 3).half(),
    }
    found = functional.project(**operands, num_heads=2, normalize="exp", backend="triton").double()
    exact = {name: each.double() for name, each in operands.items()}
    off = (found - reference.project(**exact, num_heads=2, normalize="exp")).abs().amax((0, 1))
    largest = found.abs().amax((0, 1))
    assert (off < 2e-3 * largest).all()


# By what x, rows, values and the arriving gradient are multiplied.
LARGE = (100, 100, 1e-3, 1e-2)


@FORMS
@pytest.mark.parametrize("by", [LARGE, (1e-3, 1e-5, 2e2, 1e3)], ids=["large", "small"])
def test_linear_weights_of_tokenize(form, by):
    compare(
        form, "tokenize", draw(2, 4, 20, by=by[3]), x=draw(2, 35, 24, by=by[0]),
        queries=draw(4, 24, by=by[1]), values=draw(2, 35, 20, by=by[2]), normalize=None, return_stats=True,
    )  # fmt: skip


@FORMS
@pytest.mark.parametrize("by", [LARGE, (1e-3, 1e-5, 2e3, 1e2)], ids=["large", "small"])
def test_linear_weights_of_project(form, by):
    compare(
        form, "project", draw(2, 35, 20, by=by[3]), x=draw(2, 35, 24, by=by[0]), keys=draw(4, 24, by=by[1]),
        values=draw(4, 20, by=by[2]), normalize=None,
    )  # fmt: skip


@FORMS
def test_a_query_that_no_pixel_prefers(form):
    """All its weights are tiny, and its tokens are their sums, not means."""
    compare(
        form, "tokenize", draw(2, 4, 24, by=1e-4), x=draw(2, 35, 24, by=3e3), queries=draw(4, 24, by=1e-5),
        token_bias=torch.tensor([0.0, 0.0, -17.0, -17.0]).half(), normalize="tokens", return_stats=True,
    )  # fmt: skip

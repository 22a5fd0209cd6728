"""No time for a wrong result."""

import math

import pytest
import torch

from benchmarks import check, inputs, peers
from benchmarks.attention import FOLDED
from benchmarks.check import Truth, op_gate
from benchmarks.devices import Device
from benchmarks.peers import Contender, Entrant
from benchmarks.problems import OpProblem, problem
from benchmarks.results import OK, OURS, PEER, WRONG
from benchmarks.shapes import BOTH, FORWARD, OPS, PASSES, STACK, Case, Shape
from tests._support.measuring import measured
from vt_fast.reference import ops as reference

SHAPE = Shape(2, 4, 5, 16, 4)
CASE = Case("project", SHAPE, "fp32", "nchw")
FOLDED_CODE = FOLDED.code("project")


def with_planted(code, contender, passes=PASSES):
    """A case in which this takes part too."""
    planted = OpProblem(CASE, torch.device("cpu"), ["folded"], passes)
    operands = peers.operands_of("project")
    planted.contenders.append(Entrant(**vars(contender), function=code, operands=operands, plain=FOLDED_CODE))
    return planted


class Slip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


def wrong_map(x, *operands):
    return (FOLDED_CODE(x, *operands)[0] * 1.001,)


def wrong_gradient(x, *operands):
    return FOLDED_CODE(Slip.apply(x), *operands)


@pytest.mark.parametrize("code", [wrong_map, wrong_gradient])
@pytest.mark.parametrize("role", [OURS, PEER])
def test_a_wrong_kernel_gets_no_time(role, code):
    rows = measured(with_planted(code, Contender("planted", role)))
    assert rows["planted", FORWARD].status == (WRONG if code is wrong_map else OK)
    row = rows["planted", BOTH]
    assert (row.status, row.median, row.rounds) == (WRONG, None, 0)
    assert row.reason.startswith("map is off by" if code is wrong_map else "dx is off by")
    assert row.error > 1
    assert rows["folded", BOTH].median > 0
    assert rows["vt_fast torch", BOTH].median > 0


def nan_at_some_pixels(x, *operands):
    (y,) = FOLDED_CODE(x, *operands)
    return (torch.where(torch.arange(y.shape[3]) == 1, torch.nan, y),)


@pytest.mark.parametrize("code", [nan_at_some_pixels, lambda *given: (FOLDED_CODE(*given)[0][:, :, :-1],)])
def test_nan_and_forgotten_pixels_are_wrong(code):
    row = measured(with_planted(code, Contender("planted", PEER), [FORWARD]))["planted", FORWARD]
    assert (row.status, row.error) == (WRONG, math.inf)


@pytest.mark.parametrize("compiled", [False, True])
def test_one_that_fails_or_does_not_compile_says_so(compiled):
    def fails(*operands):
        raise ZeroDivisionError("on purpose\nand more")

    row = measured(with_planted(fails, Contender("planted", PEER, compiled)))["planted", BOTH]
    assert row.status == ("unavailable" if compiled else "failed")
    assert row.reason == "ZeroDivisionError: on purpose"


def test_a_wrong_yardstick_is_no_yardstick():
    wrong = OpProblem(CASE, torch.device("cpu"), [])
    wrong.contenders[0].function = lambda *given: (FOLDED_CODE(*given)[0] * 1.1,)
    with pytest.raises(RuntimeError, match="the yardstick is wrong: map"):
        measured(wrong)


def test_a_yardstick_that_has_lost_its_digits_in_long_sums_fails_itself():
    ones = {"tokens": torch.ones(1, 4, 16, dtype=torch.float64), "dx": torch.ones(1, 2, 16)}
    long, short = (Case("tokenize", Shape(1, side, side, 16, 4), "fp32", "nchw") for side in (2048, 8))
    assert op_gate(long, Truth(ones), {"tokens": 1e-4}).yardstick == {"tokens": 1e-4}
    gate = op_gate(long, Truth(ones), {"tokens": 1e-3})
    assert gate.yardstick == {"tokens": 0.0, "dx": 0.0}
    assert "off by" in gate.judge({"tokens": 1e-3}, PEER).complaint
    assert gate.judge({"tokens": 1e-6}, PEER).complaint is None
    with pytest.raises(RuntimeError, match="the yardstick is wrong"):
        op_gate(short, Truth(ones), {"tokens": 1e-3})


def test_ours_may_have_twice_the_error_of_the_yardstick_and_a_peer_eight_times():
    values = {"tokens": torch.ones(1, 4, 16, dtype=torch.float64)}
    gate = op_gate(Case("tokenize", SHAPE, "fp32", "nchw"), Truth(values), {"tokens": 1e-5})
    for role, fine, wrong in ((OURS, 1.9e-5, 3e-5), (PEER, 7e-5, 9e-5)):
        assert gate.judge({"tokens": fine}, role).complaint is None
        assert gate.judge({"tokens": wrong}, role).complaint is not None


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("op", OPS)
def test_the_truth_is_the_reference(monkeypatch, op, stride):
    monkeypatch.setattr(check, "_PIECE", 100)  # several pieces
    monkeypatch.setattr(check, "stride_of", lambda elements: stride)
    drawn, arriving = inputs.draw(Case(op, SHAPE, "fp64", "channels_last"))
    truth = check.solve(op, drawn, arriving)
    leaves = {name: value.clone().requires_grad_() for name, value in drawn.items()}
    if op != "tokenize":
        leaves["keys"] = leaves["token_keys"] @ leaves["query_weight"].T
    residual = {} if op == "tokenize" else {"residual": leaves["x"]}
    found = getattr(reference, op)(*(leaves[name] for name in peers.operands_of(op)), **residual)
    found = found if op == "project_tokenize" else (found,)
    gradients = torch.autograd.grad(found, list(leaves.values()), list(arriving.values()))
    names = [*arriving, *(f"d{name}" for name in leaves)]
    expected = dict(zip(names, (*found, *gradients), strict=True))
    kept = {name: value[:, ::stride] if name in ("map", "dx") else value for name, value in expected.items()}
    torch.testing.assert_close(truth.values, kept, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "case",
    [
        Case(STACK, Shape(2, 4, 4, 64, 4), "fp32", "nchw", 2),
        Case(STACK, Shape(2, 4, 4, 64, 4), "bf16", "channels_last"),
        Case("tokenize", Shape(2, 5, 4, 16, 4), "bf16", "nchw", 3),  # in chunks
        Case("project_tokenize", SHAPE._replace(tokens=1), "fp32", "channels_last"),  # gradients that vanish
    ],
)
def test_all_plain_contenders_pass(case):
    rows = measured(problem(case.spec(peers.names("cpu", plain=True)), Device()))
    assert {row.status for row in rows.values()} == {OK}
    assert {row.role for row in rows.values()} >= {OURS, PEER}
    assert all(row.case == case.job for row in rows.values())

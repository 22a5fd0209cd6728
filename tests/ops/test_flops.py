"""FLOP counts: torch's counter and fvcore, forward and backward, against the counted reference."""

import pytest
import torch

pytest.importorskip("fvcore")

from fvcore.nn import FlopCountAnalysis
from torch.utils.flop_counter import FlopCounterMode

from tests._support.problems import CASES, OPS, make, rounded
from vt_fast.flops import fvcore_handles

pytestmark = [pytest.mark.on_cpu, pytest.mark.one_backend]


def count(problem, plain):
    """FLOPs of the forward and of the backward, by torch's counter."""
    operands = {name: rounded(value, torch.float64) for name, value in problem.operands.items()}
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with forward:
        results = problem.call(operands, plain)
    with backward:
        torch.autograd.backward(results, [torch.ones_like(result) for result in results])
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize(("op", "options"), CASES)
def test_counts_are_the_references_plus_what_is_recomputed(op, options):
    problem = make(op, options, "nchw")
    ours, plain = count(problem, plain=False), count(problem, plain=True)
    assert ours[0] == plain[0] > 0
    x, options = problem.operands["x"], problem.options
    pixels, num_heads = x.shape[0] * 35, options.get("num_heads", 1)
    if op == "tokenize":
        recomputed = problem.operands["queries"].shape[-2] * (12 // num_heads)
    else:
        recomputed = problem.operands["keys"].shape[-2] * 12
    if op == "project_tokenize":
        values, queries = problem.operands["values"], problem.operands["queries"]
        recomputed += values.shape[-2] * values.shape[-1] + queries.shape[-2] * queries.shape[-1]
    assert ours[1] == plain[1] + 2 * pixels * recomputed


@pytest.mark.parametrize("op", OPS)
def test_gradients_that_are_not_needed_are_not_counted(op):
    problem = make(op, ("extra_values",) if op == "tokenize" else ())
    names = [name for name, value in problem.operands.items() if value.is_floating_point()]
    for wanted in names:
        counts = []
        for plain in (False, True):
            operands = {name: value.detach().clone() for name, value in problem.operands.items()}
            operands[wanted].requires_grad_()
            counter = FlopCounterMode(display=False)
            results = problem.call(operands, plain)
            results = [result for result in results if result.requires_grad]
            with counter:
                torch.autograd.backward(results, [torch.ones_like(result) for result in results])
            counts.append(counter.get_total_flops())
        full = count(problem, plain=False)[1]
        # Less than everything; and nothing beyond the reference's but logits, map and score gradients.
        assert counts[0] < full
        assert counts[0] <= counts[1] + count(problem, plain=True)[0] + 2 * full // 3


class Call(torch.nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def forward(self, *values):
        operands = dict(zip(self.problem.operands, values, strict=True))
        return tuple(self.problem.call(operands, plain=False))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(("op", "options"), CASES)
def test_fvcore_counts_half_as_many(op, options):
    problem = make(op, options, "channels_last")
    analysis = FlopCountAnalysis(Call(problem), tuple(problem.operands.values()))
    analysis.set_op_handle(**fvcore_handles())
    assert 2 * analysis.total() == count(problem, plain=False)[0]
    assert not any("vt_fast" in name for name in analysis.unsupported_ops())

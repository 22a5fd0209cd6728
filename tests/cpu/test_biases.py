"""A bias has x's dtype or float32 (float64 for float64), and is never rounded to x's dtype."""

from dataclasses import dataclass, field

import pytest
import torch

from tests._support.instruction_sets import each
from tests._support.judging import finite_size, plain_solution, short, summed_terms
from tests._support.problems import Problem, make, rounded
from vt_fast.testing import assert_as_accurate

OPTIONS = {
    "tokenize": ("pixel_bias",),
    "project": ("token_bias", "num_heads"),
    "project_tokenize": ("pixel_bias", "token_bias", "extra_values"),
}
BIASES = {
    "tokenize": [("pixel_bias",)],
    "project": [("token_bias",)],
    "project_tokenize": [("pixel_bias",), ("token_bias",), ("pixel_bias", "token_bias")],
}
CASES = [(op, biases) for op in BIASES for biases in BIASES[op]]


@dataclass
class Mixed(Problem):
    """A problem with some operands in float32, whatever the dtype of the others."""

    in_float32: tuple[str, ...] = field(default=())

    def leaves(self, dtype=None, bias_dtype=None):
        leaves = super().leaves(dtype, bias_dtype)
        if dtype != torch.float64:
            leaves |= {name: rounded(self.operands[name], torch.float32) for name in self.in_float32}
        return leaves


def with_biases_near_1000(op, in_float32, layout, dtype, dense):
    """Biases in float32 are near 1000, where 16 bits would round them by up to 4; the others are small."""
    made = make(op, OPTIONS[op], layout, channels=34, height=12, width=25, tokens=7, queries=9)
    problem = Mixed(op, made.operands, made.options, in_float32=in_float32)
    for name, value in problem.operands.items():
        large = name in in_float32
        value = (value + 1000).float().double() if large else value.to(dtype).double()
        if not dense and name.endswith("_bias"):
            value = value.t().contiguous().t()
        problem.operands[name] = value
    return problem


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "strided"])
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize(("op", "in_float32"), CASES, ids=["-".join((op, *names)) for op, names in CASES])
def test_a_bias_in_float32_is_not_rounded(op, in_float32, dtype, layout, dense):
    problem = with_biases_near_1000(op, in_float32, layout, dtype, dense)
    exact = problem.solve(plain=True)
    plain = plain_solution(problem, dtype, exact)
    lse = finite_size(exact[problem.lse]) if problem.lse else 0.0
    for name in each():
        for key, value in problem.solve(dtype).items():
            statistic = key == problem.lse or key.removeprefix("d") in in_float32
            assert value.dtype == (torch.float32 if statistic else dtype), (name, key)
            assert_as_accurate(
                value, exact[key], plain[key], f"{key} on {name}", lse=lse, terms=summed_terms(problem)
            )


def raw_calls(x, token_bias, pixel_bias):
    """A call of each raw op that takes the biases."""
    ops = torch.ops.vt_fast_cpu
    rows, statistic = torch.ones(3, 4).to(x.dtype), torch.ones(1, 3)
    tokens, lse = torch.ones(1, 3, 4), torch.ones(1, 3)
    if x.dtype == torch.float64:
        statistic, tokens, lse = statistic.double(), tokens.double(), lse.double()
    grad, y = torch.ones(1, 3, 4).to(x.dtype), torch.empty_like(x)
    none = [None] * 8
    return {
        "tokenize": lambda: ops.tokenize(x, rows, None, pixel_bias, None, 1, tokens, lse),
        "tokenize_backward": lambda: ops.tokenize_backward(
            grad, statistic, x, rows, None, pixel_bias, None, tokens, lse, 1, y, *none[:3]
        ),
        "project": lambda: ops.project(x, rows, rows, token_bias, None, True, 1, y),
        "project_backward": lambda: ops.project_backward(
            x, x, rows, rows, token_bias, True, 1, y, *none[:3]
        ),
        "project_tokenize": lambda: ops.project_tokenize(
            x, rows, rows, rows, token_bias, None, None, pixel_bias, None, True, 1, y, tokens, lse
        ),
        "project_tokenize_backward": lambda: ops.project_tokenize_backward(
            x, grad, statistic, x, rows, rows, rows, token_bias, None, None, pixel_bias, None, tokens, lse,
            True, 1, y, *none[:7],
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("x_dtype", "bias_dtype"),
    [
        (torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float64),
        (torch.float16, torch.int32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
    ],
    ids=short,
)
def test_raw_ops_refuse_a_bias_of_another_dtype(x_dtype, bias_dtype):
    x = torch.ones(1, 5, 4, dtype=x_dtype)
    biases = {"token_bias": torch.ones(3), "pixel_bias": torch.ones(1, 5)}
    good = {name: value.to(x_dtype) for name, value in biases.items()}
    for call in raw_calls(x, **good).values():
        call()
    for name, value in biases.items():
        for op, call in raw_calls(x, **{**good, name: value.to(bias_dtype)}).items():
            if op in ("tokenize", "tokenize_backward") and name == "token_bias":
                continue
            if op in ("project", "project_backward") and name == "pixel_bias":
                continue
            with pytest.raises(RuntimeError, match=f"`{name}` must "):
                call()


def test_raw_ops_refuse_x_of_another_dtype():
    for call in raw_calls(torch.ones(1, 5, 4, dtype=torch.int32), None, None).values():
        with pytest.raises(RuntimeError, match="`x` must be float16, bfloat16, float32 or float64"):
            call()

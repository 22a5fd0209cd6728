"""A batch of no samples: empty results, and gradients of 0 for what it shares, as torch's layers give."""

import pytest
import torch

import vt_fast
from tests._support.judging import short
from tests._support.pairs import pairs
from tests._support.problems import CASES, make, widest
from vt_fast.layout import empty_map_like


@pytest.mark.one_in(7)
@pytest.mark.parametrize(
    ("case", "layout", "dtype"),
    pairs(
        CASES,
        ["bnc", "nchw", "channels_last", "nchw, sliced"],
        [widest, lambda: torch.bfloat16, lambda: torch.float16],
    ),
    ids=short,
)
def test_results_and_gradients(case, layout, dtype):
    problem, dtype = make(*case, layout, batch=0), dtype()
    found, expected = problem.solve(dtype), problem.solve(plain=True)
    leaves = problem.leaves(dtype)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert (found[name] == 0).all(), name
        if name.startswith("d"):
            assert found[name].dtype == leaves[name[1:]].dtype, name
    if case[0] != "tokenize" and "no map" not in case[1]:
        width = leaves["values"].shape[-1]
        assert found["result 0"].stride() == empty_map_like(leaves["x"], width).stride()


def test_biases_of_a_type_of_their_own():
    x = torch.zeros(0, 8, 3, 5, dtype=torch.bfloat16)
    rows = torch.zeros(4, 8, dtype=torch.bfloat16)
    token_bias = torch.zeros(4, requires_grad=True)
    pixel_bias = torch.zeros(0, 15, requires_grad=True)
    y, tokens = vt_fast.project_tokenize(x, rows, rows, rows, token_bias=token_bias, pixel_bias=pixel_bias)
    (y.float().sum() + tokens.float().sum()).backward()
    assert torch.equal(token_bias.grad, torch.zeros(4))
    assert pixel_bias.grad.shape == (0, 15)


@pytest.mark.one_backend
@pytest.mark.parametrize("num_heads", [1, 2])
def test_merge(num_heads):
    tokens = torch.zeros(3, 0, 4, 8, requires_grad=True)
    lse = torch.zeros(3, 0, num_heads * 4, requires_grad=True)
    merged, merged_lse = vt_fast.merge(tokens, lse)
    assert merged.shape == (0, 4, 8)
    assert merged_lse.shape == (0, num_heads * 4)
    (merged.sum() + merged_lse.sum()).backward()
    assert tokens.grad.shape == tokens.shape
    assert lse.grad.shape == lse.shape


@pytest.mark.one_backend
def test_compiled():
    torch._dynamo.reset()
    queries = torch.randn(4, 8, requires_grad=True)
    compiled = torch.compile(vt_fast.tokenize, fullgraph=True, backend="aot_eager")
    tokens = compiled(torch.randn(0, 8, 3, 5), queries)
    assert tokens.shape == (0, 4, 8)
    tokens.sum().backward()
    assert torch.equal(queries.grad, torch.zeros(4, 8))

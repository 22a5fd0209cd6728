"""project_tokenize by the kernels of project and tokenize, as for more tokens than one program can hold."""

import pytest
import torch

from tests._support.comparing import assert_solved
from tests._support.problems import OPTIONS, make
from vt_fast.backends.triton import project_tokenize_op
from vt_fast.backends.triton.schedule import observed


@pytest.fixture
def always(monkeypatch):
    """However few tokens there are."""
    monkeypatch.setattr(project_tokenize_op, "_MOST_ROWS", 0)


@pytest.mark.parametrize("layout", ["bnc", "nchw, sliced"])
@pytest.mark.parametrize("options", OPTIONS["project_tokenize"], ids=str)
def test_values(options, layout, always):
    assert_solved(make("project_tokenize", options, layout))


@pytest.mark.parametrize("layout", ["bnc", "nchw"])
@pytest.mark.parametrize("option", ["mask", "pixel_bias"])
def test_what_is_masked_is_not_looked_at(option, layout, always):
    problem = make("project_tokenize", ("no map", option), layout)
    masked = torch.zeros(problem.operands[option].flatten(1).shape, dtype=torch.bool)
    masked[:, 1::3] = True
    off = False if option == "mask" else -torch.inf
    problem.operands[option].flatten(1)[masked] = off
    expected = problem.solve()
    x = problem.operands["x"]
    pixels = x if x.dim() == 3 else x.flatten(2).transpose(1, 2)
    pixels[masked] = torch.nan
    for name, value in problem.solve().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


def test_many_tokens_are_composed_and_few_are_not():
    def kernels(tokens):
        found = []
        problem = make("project_tokenize", (), "bnc", tokens=tokens)
        with observed(lambda kernel, *_: found.append(kernel.__name__)), torch.no_grad():
            problem.call(problem.operands, plain=False)
        return found

    assert "project_tokenize_forward" in kernels(32)
    assert [name for name in kernels(33) if name != "combine"] == ["project_forward", "tokenize_forward"]

"""torch.func inside and outside of compiled and exported programs."""

import pytest
import torch

import vt_fast
from tests._support.comparing import tolerance
from tests._support.problems import OPS, make, widest

# Without a batching rule, torch runs an op once per entry.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


class Loss(torch.nn.Module):
    """One op's results summed up, as a function of all its operands."""

    def __init__(self, op, plain=False):
        super().__init__()
        options = ("residual", "wide", "token_bias") if op != "tokenize" else ("pixel_bias", "extra_values")
        self.problem, self.plain = make(op, options, "nchw"), plain
        self.names = list(self.problem.operands)

    def operands(self):
        leaves = self.problem.leaves()
        return [leaves[name].detach().clamp(min=-1) for name in self.names]

    def forward(self, *operands):
        results = self.problem.call(dict(zip(self.names, operands, strict=True)), self.plain)
        return sum(result.sin().sum() for result in results)


def grad(function, operands):
    return torch.func.grad(function, argnums=tuple(range(len(operands))))(*operands)


def vjp(function, operands):
    value, back = torch.func.vjp(function, *operands)
    return back(torch.ones_like(value))


def grad_and_value(function, operands):
    return torch.func.grad_and_value(function, argnums=tuple(range(len(operands))))(*operands)[0]


def vmap_of_grad(function, operands):
    several = [torch.stack([value, value * 0.5]) for value in operands]
    return torch.func.vmap(torch.func.grad(function, argnums=tuple(range(len(operands)))))(*several)


def jacrev(function, operands):
    return torch.func.jacrev(function, argnums=tuple(range(len(operands))))(*operands)


TRANSFORMS = [grad, vjp, grad_and_value, vmap_of_grad, jacrev]


def compare(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance(1e-10))


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", OPS)
def test_gradients(op, transform, how):
    loss = Loss(op)
    function = lambda *operands: transform(loss, operands)  # noqa: E731
    if how == "compiled":
        torch._dynamo.reset()
        function = torch.compile(function, backend="aot_eager", fullgraph=True)
    compare(function(*loss.operands()), transform(Loss(op, plain=True), loss.operands()))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", OPS)
def test_gradients_of_exported_programs(op, transform):
    loss = Loss(op)
    exported = torch.export.export(loss, tuple(loss.operands())).module()
    compare(transform(exported, loss.operands()), transform(Loss(op, plain=True), loss.operands()))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.queries = torch.nn.Parameter(torch.randn(4, 8, dtype=widest()))

    def forward(self, x):
        tokens = vt_fast.tokenize(x, self.queries)
        return vt_fast.project(x, tokens, tokens.sin(), residual=x).square().sum()


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_functional_call(how):
    model, x = Model(), torch.randn(2, 8, 5, 7, dtype=widest())
    found = torch.func.grad(lambda values: torch.func.functional_call(model, values, (x,)))
    if how == "compiled":
        torch._dynamo.reset()
        found = torch.compile(found, backend="aot_eager", fullgraph=True)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    expected = torch.autograd.grad(model(x), model.queries)
    compare(found(parameters).values(), expected)


def test_nothing_is_lost_below_a_transform():
    """The gradient of an outer autograd passes through the values of an inner transform."""
    queries = torch.randn(4, 8, dtype=widest(), requires_grad=True)
    x = torch.randn(2, 35, 8, dtype=widest())
    value = torch.func.vmap(lambda x: vt_fast.tokenize(x[None], queries).square().sum())(x)
    expected = vt_fast.tokenize(x, queries).square().sum((1, 2))
    torch.testing.assert_close(value, expected)
    compare(torch.autograd.grad(value.sum(), queries), torch.autograd.grad(expected.sum(), queries))


@pytest.mark.parametrize("op", ["tokenize", "project_tokenize"])
def test_tokens_are_kept_unrounded_below_a_transform(op):
    """In 16 bits the backward starts from them; the gradient is that without the transform."""
    rows = torch.randn(4, 8, dtype=torch.bfloat16)
    x = torch.randn(2, 35, 8, dtype=torch.bfloat16, requires_grad=True)

    def function(x):
        if op == "tokenize":
            return vt_fast.tokenize(x, rows)
        return vt_fast.project_tokenize(x, rows, rows, rows, return_map=False)[1]

    mapped = torch.func.vmap(lambda x: function(x[None])[0])(x)
    weights = torch.randn_like(mapped)
    (expected,) = torch.autograd.grad(function(x), x, weights)
    assert torch.equal(torch.autograd.grad(mapped, x, weights)[0], expected)


def test_a_graph_of_torch_fx_keeps_unrounded_tokens():
    rows, weights = torch.randn(2, 4, 8, dtype=torch.bfloat16)
    x = torch.randn(1, 35, 8, dtype=torch.bfloat16, requires_grad=True)

    def function(x):
        return vt_fast.tokenize(x, rows)

    results = [f(x) for f in (torch.fx.symbolic_trace(function), function)]
    assert torch.equal(*(torch.autograd.grad(result, x, weights[None])[0] for result in results))


def test_a_transform_within_no_grad():
    x, queries = torch.randn(2, 35, 8, dtype=widest()), torch.randn(4, 8, dtype=widest())
    with torch.no_grad():
        found = torch.func.grad(lambda queries: vt_fast.tokenize(x, queries).sum())(queries)
    queries.requires_grad_()
    compare([found], torch.autograd.grad(vt_fast.tokenize(x, queries).sum(), queries))

"""Compiled and exported modules give eager's outputs and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.export import Dim

from tests._support.nn_cases import (
    MODULES,
    STACKS,
    C,
    L,
    assert_same,
    feature_map,
    incoming,
    made,
    outputs_and_gradients,
    stack,
)
from vt_fast import nn

# Tracing costs about a second each: the modules that differ in what is traced.
STACK_NAMES = (
    "default",
    "paper's counts",
    "later position",
    "v1, several heads",
    "clustering",
    "pooling",
    "a module without projector",
)
CASES = {f"module: {name}": MODULES[name] for name in ("recurrent", "v1")}
CASES |= {f"stack: {name}": STACKS[name] for name in STACK_NAMES}
# What these two trace, others trace too.
COMPILED = [name for name in CASES if name not in ("module: recurrent", "stack: default")]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TakesTokens(torch.nn.Module):
    """A stack that is called as a single module is, with tokens that it does not use."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, tokens):
        return self.inner(x)


def callable_of(name):
    module = made(CASES[name])
    return TakesTokens(module) if name.startswith("stack") else module


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "contiguous") for name in COMPILED), ("stack: paper's counts", "channels_last")],
)
def test_compiled(name, form):
    module = callable_of(name)
    x, tokens = feature_map(form), incoming(getattr(module, "inner", module))
    expected = outputs_and_gradients(module, x, tokens)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = {
        key.replace("_orig_mod.", ""): value
        for key, value in outputs_and_gradients(compiled, x, tokens).items()
    }
    assert_same(found, expected)
    assert found["output 0"].stride() == expected["output 0"].stride()


@pytest.mark.parametrize("name", CASES)
def test_exported(name):
    module = callable_of(name)
    x, tokens = feature_map("contiguous"), incoming(getattr(module, "inner", module))
    expected = outputs_and_gradients(module, x, tokens)
    exported = torch.export.export(copy.deepcopy(module), (x.detach(), tokens.detach())).module()
    assert_same(outputs_and_gradients(exported, x, tokens), expected)


def test_clustering_compiled_under_autocast():
    module = made(CASES["stack: clustering"], dtype=torch.float32)
    x = feature_map("contiguous", dtype=torch.float32).detach()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for one, two in zip(compiled(x), module(x), strict=True):
            assert torch.equal(one, two)


# A position code makes a table of the map's size, in a stack or alone, where N = H W meets no other size.
POSITIONS = {
    "no position": lambda: stack(C, 2, num_tokens=L, num_heads=2),
    "linear position": lambda: stack(C, 2, num_tokens=L, position=nn.LinearPositionCode(5, 3)),
    "conv position": lambda: stack(C, 2, num_tokens=L, position=nn.ConvPositionCode(6, 3)),
    "tokenizer alone": lambda: nn.FilterTokenizer(C, L, position=nn.LinearPositionCode(5, 3)),
}


def outputs(module, x):
    results = module(x)
    return [results] if isinstance(results, torch.Tensor) else results


@pytest.mark.parametrize("name", POSITIONS)
def test_compiled_once_for_all_batch_and_map_sizes(name):
    module = made(POSITIONS[name])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, height, width in [(2, 7, 9), (5, 11, 4), (3, 6, 6)]:
            x = torch.randn(batch, C, height, width, dtype=torch.float64)
            for one, two in zip(outputs(compiled, x), outputs(module, x), strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", POSITIONS)
def test_exported_for_all_batch_and_map_sizes(name):
    module = made(POSITIONS[name])
    sizes = {0: Dim("batch", min=2), 2: Dim("height", min=2), 3: Dim("width", min=2)}
    x = torch.randn(2, C, 7, 9, dtype=torch.float64)
    exported = torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()
    for shape in [(2, 7, 9), (5, 12, 4)]:
        x = torch.randn(shape[0], C, *shape[1:], dtype=torch.float64)
        for one, two in zip(outputs(exported, x), outputs(module, x), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


class OnComputedMap(torch.nn.Module):
    """A stack behind an operation, so that its map is no input of the graph."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.sin())


@pytest.mark.parametrize("how", ["compiled", "exported"])
def test_a_map_that_is_added_to_itself_is_one_operand(how):
    module, graphs = OnComputedMap(made(STACKS["default"])), []
    x = feature_map("contiguous").detach()
    if how == "compiled":

        def keep(graph, inputs):
            graphs.append(graph)
            return make_boxed_func(graph.forward)

        with torch.no_grad():
            torch.compile(module, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(x)
    else:
        graphs.append(torch.export.export(module, (x,)).module())
    found = []
    for raw in (torch.ops.vt_fast.project.default, torch.ops.vt_fast.project_tokenize.default):
        names = [argument.name for argument in raw._schema.arguments]
        for node in (node for graph in graphs for node in graph.graph.nodes if node.target is raw):
            found.append([node.args[names.index(name)] for name in ("residual", "residual_is_input")])
    assert found == [[None, True]] * 3


def test_functional_call_under_torch_func_grad():
    module, x = made(STACKS["tokens only"]), feature_map("contiguous").detach()
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def loss(values):
        return torch.func.functional_call(module, values, (x,))[1].square().sum()

    found = torch.func.grad(loss)(parameters)
    loss_eager = module(x)[1].square().sum()
    expected = torch.autograd.grad(loss_eager, list(module.parameters()))
    for (name, grad), two in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(grad, two, rtol=1e-10, atol=1e-10, msg=name)


def test_double_backward_goes_through_the_reference():
    """The ops refuse it; the paper as written does it."""
    module, x = made(STACKS["default"]), feature_map("rows")

    def twice():
        grad = torch.autograd.grad(module(x)[1].square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(grad.square().sum(), x)[0]

    with pytest.raises(RuntimeError, match="reference"):
        twice()
    module.backend = "reference"
    assert torch.all(twice().isfinite())

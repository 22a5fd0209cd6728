"""Compiled functions keep each op as one node and give the bits of eager calls."""

import pytest
import torch

from tests._support.gpu_cases import SHAPE, same_bits
from tests._support.problems import OPS, make

# No two are the same in one of them: a compiler takes equal ones for the same symbol.
SIZES = [
    {"batch": 2, "channels": 64, "height": 24, "width": 20, "tokens": 16, "queries": 12},
    {"batch": 3, "channels": 64, "height": 28, "width": 36, "tokens": 16, "queries": 12},
]


def calls_of(graph):
    return [str(node.target) for node in graph.graph.nodes if "vt_fast" in str(node.target)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("op", OPS)
def test_one_node_for_shapes_of_any_size(op, dtype):
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    first = make(op, (), "nchw", **SIZES[0])
    compiled = torch.compile(
        lambda operands: first.call(operands, plain=False), fullgraph=True, dynamic=True, backend=keep
    )
    for sizes in SIZES:
        operands = make(op, (), "nchw", **sizes).leaves(dtype)
        assert same_bits(compiled(operands), first.call(operands, plain=False))
    assert len(graphs) == 1
    assert calls_of(graphs[0]) == [f"vt_fast.{op}.default"]


@pytest.mark.slow
@pytest.mark.one_in(3)
@pytest.mark.parametrize("op", OPS)
def test_inductor_gives_the_bits_of_eager(op):
    torch._dynamo.reset()
    problem = make(op, (), "channels_last", **SHAPE)
    operands = problem.leaves(torch.bfloat16)
    leaves = [value for value in operands.values() if value.requires_grad]

    def solve(function):
        results = function(operands)
        grads = torch.autograd.grad(results, leaves, [torch.ones_like(result) for result in results])
        return [*(result.detach() for result in results), *grads]

    compiled = torch.compile(lambda operands: problem.call(operands, plain=False), fullgraph=True)
    assert same_bits(solve(compiled), solve(lambda operands: problem.call(operands, plain=False)))

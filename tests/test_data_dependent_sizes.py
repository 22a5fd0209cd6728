"""Sizes that depend on data: kept pixels, samples and tokens in exported and compiled programs."""

from __future__ import annotations

import pytest
import torch

import vt_fast
from tests._support import model_cases, nn_cases, segmentation_cases
from tests._support.problems import make
from vt_fast import nn

SAMPLES = ("x", "queries", "keys", "values", "token_bias", "residual", "mask", "pixel_bias")
PIXELS = {"x": 1, "residual": 1, "mask": 1, "pixel_bias": 1, "extra_values": 0}
# All options of each op, in as few calls as the ops allow.
CALLS = [
    ("tokenize", ("mask", "pixel_bias", "extra_values")),
    ("tokenize", ("num_heads", "pixel_bias")),
    ("project", ("residual", "wide", "num_heads", "token_bias")),
    ("project_tokenize", ("mask", "pixel_bias", "extra_values", "residual", "wide")),
    ("project_tokenize", ("no map", "token_bias")),
]


@pytest.fixture(autouse=True)
def _one_graph():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


class Kept(torch.nn.Module):
    """A call on the samples or pixels that two masks keep: one of x, and one of everything else."""

    def __init__(self, problem, dims):
        super().__init__()
        self.problem, self.dims = problem, dims

    def forward(self, operands, keep, others):
        kept = {
            name: value.index_select(self.dims[name], (keep if name == "x" else others).nonzero().squeeze(1))
            if name in self.dims
            else value
            for name, value in operands.items()
        }
        return tuple(self.problem.call(kept, plain=False))


def kept_case(call, what):
    problem = make(*call, batch=4, tokens=5, queries=3)
    names = problem.operands
    dims = dict.fromkeys((n for n in SAMPLES if n in names), 0) if what == "samples" else PIXELS
    operands = {name: value.detach() for name, value in problem.leaves(torch.float64).items()}
    return Kept(problem, dims), operands, torch.arange(4 if what == "samples" else 35)


def assert_same(results, expected):
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("what", ["samples", "pixels"])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_exported_ops(call, what):
    model, operands, index = kept_case(call, what)
    exported = torch.export.export(model, (operands, index % 2 == 0, index % 2 == 0)).module()
    for keep in (index % 2 == 0, index == 1, index > 0):
        assert_same(exported(operands, keep, keep.clone()), model(operands, keep, keep.clone()))
    none = index < 0
    if what == "samples":
        assert_same(exported(operands, none, none), model(operands, none, none))
    else:
        with pytest.raises(RuntimeError, match=r"Runtime assertion failed for expression Ne\(u0, 0\)"):
            exported(operands, none, none)
    if len(model.dims.keys() & operands.keys()) > 1:
        with pytest.raises(RuntimeError, match=r"Runtime assertion failed for expression Eq\(u\d, u\d\)"):
            exported(operands, index == 1, index > 0)


@pytest.mark.parametrize("what", ["samples", "pixels"])
@pytest.mark.parametrize("call", [CALLS[0], CALLS[2], CALLS[3]], ids=str)
def test_compiled_ops_and_gradients(call, what):
    model, operands, index = kept_case(call, what)
    if "token_bias" in operands:
        operands["token_bias"] = operands["token_bias"].clamp(min=-1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for keep in (index % 2 == 0, index > 0):
        solutions = []
        for function in (compiled, model):
            leaves = {
                name: value.clone().requires_grad_(value.is_floating_point())
                for name, value in operands.items()
            }
            results = function(leaves, keep, keep.clone())
            inputs = [leaf for leaf in leaves.values() if leaf.requires_grad]
            gradients = torch.autograd.grad(sum(result.sin().sum() for result in results), inputs)
            solutions.append([*results, *gradients])
        assert_same(*solutions)


@pytest.mark.parametrize("how", ["16 bits", "autocast"])
def test_exported_ops_in_16_bits(how):
    """Tokens are kept unrounded for the backward there."""
    dtype = torch.bfloat16 if how == "16 bits" else torch.float32
    x, keep = torch.randn(5, 8, 4, 3, dtype=dtype), torch.arange(5) % 2 == 0
    rows = torch.randn(4, 8, dtype=dtype, requires_grad=True)

    class Kept(torch.nn.Module):
        def forward(self, x, keep):
            with torch.autocast("cpu", enabled=how == "autocast"):
                kept = x[keep]
                y, tokens = vt_fast.project_tokenize(kept, rows, rows, rows, residual=kept)
                return y, tokens, vt_fast.tokenize(kept, rows)

    exported = torch.export.export(Kept(), (x, keep)).module()
    compiled = torch.compile(Kept(), fullgraph=True, backend="aot_eager")
    for kept in (keep, ~keep):
        expected = Kept()(x, kept)
        assert_same(exported(x, kept), expected)
        found = compiled(x, kept)
        assert_same(found, expected)
        grads = [torch.autograd.grad(sum(y.sum() for y in results), rows)[0] for results in (found, expected)]
        assert torch.equal(*grads)


class KeptTokens(torch.nn.Module):
    def forward(self, x, tokens, keep):
        kept = tokens[:, keep]
        y, pooled = vt_fast.project_tokenize(x, kept, kept, kept, residual=x)
        return vt_fast.project(y, kept, kept), vt_fast.tokenize(x, kept), pooled


def test_exported_tokens():
    x, tokens, keep = torch.randn(2, 8, 5, 7), torch.randn(2, 6, 8), torch.arange(6) % 2 == 0
    exported = torch.export.export(KeptTokens(), (x, tokens, keep)).module()
    for kept in (keep, torch.arange(6) == 1):
        for a, b in zip(exported(x, tokens, kept), KeptTokens()(x, tokens, kept), strict=True):
            torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="Runtime assertion failed"):
        exported(x, tokens, keep & False)


class KeptIn(torch.nn.Module):
    """A module on kept samples, by a mask or by their indices, or on kept pixels."""

    def __init__(self, module, what):
        super().__init__()
        self.module, self.what = module, what

    def forward(self, x, tokens, keep):
        if self.what == "pixels":
            return tuple(nn_cases.run(self.module, x[:, keep], tokens))
        kept = keep.nonzero().squeeze(1) if self.what == "indices" else keep
        return tuple(nn_cases.run(self.module, x[kept], tokens[kept]))


NAMES = (
    "tokenizer: dynamic 8 heads, key 4, value 2",
    "tokenizer: clustering",
    "projector: shortcut",
    "module: v1",
    "module: pooling",
    "stack: default",
    "stack: later position",
    "stack: v1, several heads",
)


@pytest.mark.parametrize(
    ("name", "what"),
    [(name, ("samples", "indices")[index % 2]) for index, name in enumerate(NAMES)]
    + [(name, "pixels") for name in ("tokenizer: recurrent", "projector: num_heads", "stack: tokens only")],
)
def test_exported_modules(name, what):
    module = nn_cases.made(nn_cases.CASES[name]).eval()
    pixels = what == "pixels"
    x = nn_cases.feature_map("rows" if pixels else "contiguous", batch=nn_cases.B if pixels else 4).detach()
    tokens = nn_cases.incoming(module, batch=x.shape[0]).detach()
    index = torch.arange(x.shape[1 if pixels else 0])
    model = KeptIn(module, what)
    exported = torch.export.export(model, (x, tokens, index % 2 == 0)).module()
    for keep in (index % 2 == 0, index == 1, *([] if pixels else [index < 0])):
        assert_same(exported(x, tokens, keep), model(x, tokens, keep))


@pytest.mark.parametrize("how", ["exported by Dynamo", "compiled"])
def test_a_stack_in_dynamo(how):
    stack = nn_cases.made(nn_cases.CASES["stack: filters only"])
    x, tokens = nn_cases.feature_map("contiguous", batch=4), nn_cases.incoming(stack, batch=4)
    model, index = KeptIn(stack, "indices"), torch.arange(4)
    if how == "compiled":
        function = torch.compile(model, fullgraph=True, backend="aot_eager")
    else:
        function = torch.export.export(model, (x, tokens, index > 1), strict=True).module()
    for keep in (index > 1, index == 0):
        results, expected = function(x, tokens, keep), model(x, tokens, keep)
        assert_same(results, expected)
        if how == "compiled":
            (dx,) = torch.autograd.grad(sum(result.sum() for result in results), x)
            (dx_expected,) = torch.autograd.grad(sum(result.sum() for result in expected), x)
            assert_same([dx], [dx_expected])


class KeptLevels(torch.nn.Module):
    def __init__(self, neck):
        super().__init__()
        self.neck = neck

    def forward(self, maps, keep):
        return tuple(self.neck([x[keep] for x in maps]))


def test_an_exported_neck():
    model = KeptLevels(segmentation_cases.randomised(segmentation_cases.neck()).eval())
    maps = [x.detach() for x in segmentation_cases.levels(batch=4)]
    index = torch.arange(4)
    exported = torch.export.export(model, (maps, index > 1)).module()
    for keep in (index > 1, index == 0, index < 0):
        assert_same(exported(maps, keep), model(maps, keep))


class KeptImages(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images, keep):
        kept = images[keep]
        torch._check(kept.shape[0] > 0)  # torch's BatchNorm cannot be exported without
        return self.net(kept)


def test_an_exported_network():
    model = KeptImages(model_cases.made(model_cases.classifier).eval())
    nn.set_backend(model, None)
    images, index = model_cases.images().repeat(2, 1, 1, 1), torch.arange(4)
    exported = torch.export.export(model, (images, index > 1)).module()
    for keep in (index > 1, index == 0):
        assert_same([exported(images, keep)], [model(images, keep)])

"""Products by oneDNN against float64 and PyTorch's own, and where they are left to PyTorch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from vt_fast.nn import GroupedLinear, VisualTransformerStack, freeze, products

pytestmark = pytest.mark.skipif(not products._has_onednn(), reason="PyTorch has no oneDNN here")

ROWS, IN, OUT = 131, 257, 263  # over the least number of multiplications


@pytest.fixture(autouse=True)
def _room_for_any_size(monkeypatch):
    monkeypatch.setattr(products, "_sizes", products._Sizes())


def calls(function):
    """What a function returns, and how many products it gives to oneDNN."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        result = function()
    return result, sum(event.name == "mkldnn::_linear_pointwise" for event in found.events())


def error(y, x, weight, bias=None):
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return (y - exact).square().mean().sqrt().item()


INPUTS = {
    "rows": lambda: torch.randn(ROWS, IN),
    "batch": lambda: torch.randn(ROWS, 2, IN),
    "gaps": lambda: torch.randn(ROWS, 2 * IN)[:, 3 : IN + 3],
    "shared": lambda: torch.randn(1, IN).expand(ROWS, IN),
    "unaligned": lambda: torch.randn(ROWS * IN + 1)[1:].view(ROWS, IN),
}
WEIGHTS = {
    "rows": lambda: torch.randn(OUT, IN),
    "columns": lambda: torch.randn(IN, OUT).t(),
    "unaligned": lambda: torch.randn(OUT * IN + 3)[3:].view(OUT, IN),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("x", INPUTS)
def test_linear(x, weight, bias):
    x, weight, bias = INPUTS[x](), WEIGHTS[weight](), torch.randn(OUT) if bias else None
    y, count = calls(lambda: products.linear(x, weight, bias))
    assert count == 1
    assert y.shape == (*x.shape[:-1], OUT)
    assert y.is_contiguous()
    # MKL adds up in blocks, oneDNN in order; all ops may have twice the error of PyTorch's own.
    assert error(y, x, weight, bias) <= 2 * error(F.linear(x, weight, bias), x, weight, bias)
    assert torch.equal(y, products.linear(x, weight, bias))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_matmul(weight):
    x, matrix = torch.randn(2, ROWS, IN), WEIGHTS[weight]().t()
    y, count = calls(lambda: products.matmul(x, matrix))
    assert count == 1
    assert error(y, x, matrix.t()) <= 2 * error(x @ matrix, x, matrix.t())


@pytest.mark.parametrize("needed", ["x", "weight", "bias", "x weight", "weight bias", "x weight bias"])
def test_gradients(needed):
    given = {"x": torch.randn(ROWS, 2, IN), "weight": torch.randn(OUT, IN), "bias": torch.randn(OUT)}
    wanted = [given[name].requires_grad_() for name in needed.split()]

    def gradients(function, *given):
        first = torch.autograd.grad(function(*given).square().sum(), wanted_of(given), create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted_of(given))

    def wanted_of(given):
        return [value for value in given if value.requires_grad]

    found = gradients(products.linear, *given.values())
    exact = gradients(
        F.linear, *(value.detach().double().requires_grad_(value.requires_grad) for value in given.values())
    )
    assert len(found) == 2 * len(wanted)
    for mine, want in zip(found, exact, strict=True):
        assert (mine - want).abs().max() <= 1e-5 * want.abs().max()


def test_what_backward_keeps():
    """A frozen weight keeps no input, as with PyTorch's own."""
    kept = WeakIdKeyDictionary()

    def pack(value):
        kept[value] = None
        return value

    weight = torch.randn(OUT, IN)
    x = torch.randn(ROWS, IN, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        y = products.linear(x, weight)
    assert y.requires_grad
    assert [value is weight for value in kept] == [True]


class Symbolic(torch.nn.Module):
    """A module whose product torch.fx looks at."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x):
        return products.linear(x, self.weight, self.bias)


def autocast(x, layer):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


def without_onednn(x, layer):
    with torch.backends.mkldnn.flags(enabled=False):
        return layer(x)


def counted(x, layer):
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert counter.get_total_flops() == 2 * x.numel() * layer.out_features
    return y


def with_gaps(x, layer):
    weight = torch.randn(layer.out_features, 2 * layer.in_features)
    weight[:, : layer.in_features] = layer.weight
    return products.linear(x, weight[:, : layer.in_features], layer.bias)


def strided_bias(x, layer):
    bias = layer.bias.repeat_interleave(2)[::2]
    return products.linear(x, layer.weight, bias)


def bias_of_all_rows(x, layer):
    return products.linear(x, layer.weight, layer.bias.expand(ROWS, OUT).contiguous())


def one_bias(x, layer):
    layer.bias.fill_(100)
    return products.linear(x, layer.weight, layer.bias[0])


class Noted(TorchFunctionMode):
    """A mode that must see what is called."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names = [*getattr(self, "names", []), getattr(function, "__name__", "")]
        return function(*args, **(kwargs or {}))


def seen_by_a_mode(x, layer):
    with Noted() as mode:
        y = layer(x)
    assert "linear" in mode.names
    return y


def along_x(x, layer):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).primal


def one_row(x, layer):
    wide = GroupedLinear(1 << 15, OUT)
    assert wide(torch.randn(1 << 15)).shape == (OUT,)
    return F.linear(x, layer.weight, layer.bias)


def sparse_weight(x, layer):
    return products.matmul(x, layer.weight.t().to_sparse_csr()) + layer.bias


OTHERS = {
    "autocast": autocast,
    "oneDNN switched off": without_onednn,
    "FLOPs counted": counted,
    "weight with gaps": with_gaps,
    "strided bias": strided_bias,
    "bias of all rows": bias_of_all_rows,
    "one bias": one_bias,
    "a mode": seen_by_a_mode,
    "dual numbers": along_x,
    "one row": one_row,
    "sparse x": lambda x, layer: layer(x.to_sparse()),
    "sparse weight": sparse_weight,
    "compiled": lambda x, layer: torch.compile(layer, backend="eager", fullgraph=True)(x),
    "traced": lambda x, layer: torch.jit.trace(layer, (x,), check_trace=False)(x),
    "symbolic": lambda x, layer: torch.fx.symbolic_trace(Symbolic(layer))(x),
    "vmap": lambda x, layer: torch.func.vmap(layer)(x[:, None])[:, 0],
    "derivative along x": lambda x, layer: torch.func.jvp(layer, (x,), (x,))[0],
    "few rows": lambda x, layer: torch.cat([layer(part) for part in x.split(16)]),
    "pixels last": lambda x, layer: products.linear(x.t().contiguous().t(), layer.weight, layer.bias),
    "float64": lambda x, layer: layer.double()(x.double()).float(),
}


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", OTHERS)
@torch.no_grad()
def test_pytorchs_own_product_elsewhere(way):
    layer, x = GroupedLinear(IN, OUT), torch.randn(ROWS, IN)
    torch.nn.init.normal_(layer.bias)
    y, count = calls(lambda: OTHERS[way](x, layer))
    assert count == 0
    tolerance = 1e-1 if way == "autocast" else 1e-5
    torch.testing.assert_close(
        y.float(), F.linear(x, layer.float().weight, layer.bias), rtol=0, atol=tolerance
    )


def test_a_default_device_changes_nothing():
    x, weight = torch.randn(ROWS, IN), torch.randn(OUT, IN)
    with torch.device("cpu"):
        assert calls(lambda: products.linear(x, weight))[1] == 1


def test_batched_gradients():
    x, weight = torch.randn(ROWS, 2, IN, requires_grad=True), torch.randn(OUT, IN, requires_grad=True)
    cotangents = torch.randn(3, ROWS, 2, OUT)
    found, expected = (
        torch.autograd.grad(each(x, weight), (x, weight), cotangents, is_grads_batched=True)
        for each in (products.linear, F.linear)
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_results_may_be_written():
    layer, x = GroupedLinear(IN, OUT), torch.randn(ROWS, 2, IN, requires_grad=True)
    found, expected = layer(x).relu_(), layer(x).relu()
    assert torch.equal(found, expected)
    found.sum().backward()
    mine, x.grad = x.grad, None
    expected.sum().backward()
    assert torch.equal(mine, x.grad)


def test_few_sizes_are_held(monkeypatch):
    """oneDNN would keep a buffer for each of any number of sizes."""
    monkeypatch.setattr(products, "_sizes", products._Sizes())
    monkeypatch.setattr(products, "_MOST_BYTES", 5 * 4 * OUT * IN)
    weight = torch.randn(OUT, IN)
    counts = [
        calls(partial(products.linear, torch.randn(ROWS + n, IN), weight))[1] for n in (*range(8), 0, 7)
    ]
    assert counts == [1] * 5 + [0] * 3 + [1, 0]


def test_checkpoint():
    layer, x = GroupedLinear(IN, OUT), torch.randn(ROWS, 2, IN, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("last_projector", [True, False])
def test_a_stack(last_projector):
    """Folds and factors of a map, with the gradients of all parameters."""
    made = VisualTransformerStack(
        256, 2, token_channels=1024, out_channels=512, last_projector=last_projector
    )
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    x = torch.randn(4, 256, 6, 7, requires_grad=True)

    def gradients():
        tokens = made(x)[1]
        return tokens, *torch.autograd.grad(
            tokens.square().mean(), [x, *made.parameters()], allow_unused=True
        )

    found, count = calls(gradients)
    assert count > 20
    with torch.backends.mkldnn.flags(enabled=False):
        expected, count = calls(gradients)
    assert count == 0
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def packings(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        result = function()
    return result, sum(event.name == "mkldnn::_reorder_linear_weight" for event in found.events())


def test_frozen_layers_keep_their_weights_packed():
    layer, x = GroupedLinear(IN, OUT).eval(), torch.randn(ROWS, IN)
    with torch.no_grad():
        expected = layer(x)
        freeze(layer)
        for count in (1, 0):
            y, packed = packings(lambda: layer(x))
            assert packed == count
            torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
        layer.weight.mul_(2)
        y, packed = packings(lambda: layer(x))
        assert packed == 1
        torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
    y, packed = packings(lambda: layer(x))
    assert packed == 0
    y.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("x", INPUTS)
@torch.no_grad()
def test_packed_weights(x, weight):
    layer, x = GroupedLinear(IN, OUT).eval(), INPUTS[x]()
    layer.weight.data = WEIGHTS[weight]()
    expected = layer(x)
    y, packed = packings(lambda: freeze(layer)(x))
    assert packed == 1
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)
    for rows in (1, 130, 700):
        x = torch.randn(rows, IN)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-4)


def test_computed_weights_are_not_packed():
    layer, x = GroupedLinear(IN, OUT), torch.randn(ROWS, IN)
    torch.nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        assert packings(lambda: freeze(layer.eval())(x))[1] == 0


def test_wrong_width():
    with pytest.raises(ValueError, match=f"{IN}, got .*{IN + 1}"):
        GroupedLinear(IN, OUT)(torch.randn(ROWS, IN + 1))

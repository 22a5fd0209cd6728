"""The grouped linear layer and its transpose, against a dense block-diagonal matrix."""

from __future__ import annotations

import math

import pytest
import torch

from vt_fast.nn import GroupedLinear
from vt_fast.nn.init import lecun_normal_
from vt_fast.nn.linear import projection_of, spread


def dense(layer):
    """The (out, in) matrix with zeros between the groups."""
    return torch.block_diag(*layer.weight.detach().chunk(layer.groups))


def layer_of(in_features, out_features, groups, bias=True):
    layer = GroupedLinear(in_features, out_features, groups, bias=bias).double()
    if bias:
        torch.nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (2, 3, 5)])
def test_forward(groups, bias, shape):
    layer, x = layer_of(12, 18, groups, bias), torch.randn(*shape, 12, dtype=torch.float64)
    expected = x @ dense(layer).T + (layer.bias if bias else 0)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("num_heads", [1, 2, 3, 4, 6, 12])
def test_fold_is_the_transpose_of_each_head(groups, num_heads):
    layer, rows = layer_of(24, 36, groups), torch.randn(2, 5, 36, dtype=torch.float64)
    for blocks in (n for n in range(1, 13) if math.gcd(num_heads, groups) % n == 0):
        folded, logits = layer(rows, fold=(num_heads, blocks))
        assert folded.shape == (2, 5 * num_heads, 24 // blocks)
        assert torch.equal(folded, layer.fold(rows, num_heads, blocks))
        for head in range(num_heads):
            masked = torch.zeros_like(rows)
            part = slice(head * 36 // num_heads, (head + 1) * 36 // num_heads)
            masked[..., part] = rows[..., part]
            full, lines = masked @ dense(layer), slice(5 * head, 5 * head + 5)
            block = head // (num_heads // blocks)
            own = slice(block * 24 // blocks, (block + 1) * 24 // blocks)
            torch.testing.assert_close(folded[:, lines], full[..., own], rtol=0, atol=1e-10)
            torch.testing.assert_close(logits[:, lines], masked @ layer.bias, rtol=0, atol=1e-10)
            full[..., own] = 0
            assert torch.all(full == 0), "a head reads outside of its block"


def test_fold_of_shared_rows():
    layer, rows = layer_of(12, 18, 3), torch.randn(5, 18, dtype=torch.float64)
    torch.testing.assert_close(layer.fold(rows, 2), layer.fold(rows[None], 2)[0], rtol=0, atol=1e-10)


def test_spread_keeps_one_block_for_each_head():
    rows = torch.randn(2, 5, 12)
    out = spread(rows, 3)
    assert out.shape == (2, 3, 5, 12)
    assert torch.equal(out.sum(1), rows)
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        assert torch.equal(out[:, head, :, own], rows[..., own])


@pytest.mark.parametrize("groups", [1, 4])
def test_starts_with_unit_variance(groups):
    torch.manual_seed(0)
    layer = GroupedLinear(256, 256, groups)
    deviation = layer(torch.randn(64, 256)).std().item()
    # 256 weights per output are few enough to move one output's variance, 256 outputs even it out.
    assert deviation == pytest.approx(1, abs=0.05)
    assert torch.all(layer.bias == 0)


def test_gain_zero_starts_from_zero():
    assert torch.all(GroupedLinear(4, 4, gain=0).weight == 0)
    assert torch.all(lecun_normal_(torch.ones(3), 1, gain=0.0) == 0)


def test_the_reference_gets_the_parameters_themselves():
    layer = GroupedLinear(4, 6, 2)
    weight, bias, groups = projection_of(layer)
    assert weight is layer.weight
    assert bias is layer.bias
    assert groups == 2
    assert projection_of(GroupedLinear(4, 6, bias=False)).bias is None
    assert projection_of(None) is None


def test_one_mode_at_a_time():
    layer, x = GroupedLinear(8, 8), torch.randn(2, 8)
    for modes in ({"fold": (1, 1), "parameters": True}, {"fold": (1, 1), "channels_first": True}):
        with pytest.raises(ValueError, match="one of `fold`, `channels_first` and `parameters` may be given"):
            layer(x, **modes)
    with pytest.raises(TypeError, match=r"`x` must be a torch\.Tensor, got NoneType"):
        layer(None)


def test_repr():
    assert repr(GroupedLinear(4, 6, 2)) == "GroupedLinear(4, 6, groups=2, bias=True)"
    assert repr(GroupedLinear(4, 6, bias=False)) == "GroupedLinear(4, 6, bias=False)"

"""The grouped 1x1 convolution against PyTorch's own, a dense matrix, and FLOP counters."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vt_fast.reference.linear import Projection, linear

GROUPS = [1, 2, 4]


def test_hand_computed_groups_and_bias(close):
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])  # 2 groups: 2 inputs, 2 outputs
    bias = torch.tensor([0.0, 100.0, 0.0, 200.0])
    y = linear(torch.tensor([[1.0, 1.0, 10.0, 0.0]]), Projection(weight, bias, 2))
    close(y, [[3.0, 107.0, 50.0, 270.0]])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", GROUPS)
def test_equals_conv1d(make, close, groups, bias):
    x, projection = make.tensor(2, 5, 8), make.projection(8, 12, groups, bias)
    convolved = F.conv1d(x.transpose(1, 2), projection.weight.unsqueeze(2), projection.bias, groups=groups)
    close(linear(x, projection), convolved.transpose(1, 2))


@pytest.mark.parametrize("groups", GROUPS)
def test_equals_the_dense_block_diagonal_weight(make, close, groups):
    x, projection = make.tensor(2, 5, 8), make.projection(8, 12, groups)
    dense = torch.block_diag(*projection.weight.chunk(groups))
    assert dense.shape == (12, 8)
    close(linear(x, projection), x @ dense.T + projection.bias)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2), (0,), (2, 0)])
def test_any_leading_dimensions(make, close, shape, groups):
    x, projection = make.tensor(*shape, 8), make.projection(8, 4, groups)
    y = linear(x, projection)
    assert y.shape == (*shape, 4)
    rows = [linear(row, projection) for row in x.reshape(-1, 8)]
    close(y.reshape(-1, 4), torch.stack(rows) if rows else torch.zeros(0, 4))


def test_strided_input(make, close):
    x, projection = make.tensor(2, 8, 5), make.projection(8, 4, 2)
    close(linear(x.transpose(1, 2), projection), linear(x.transpose(1, 2).contiguous(), projection))


@pytest.mark.parametrize("groups", GROUPS)
def test_flop_counter_sees_the_true_cost(make, groups):
    x, projection = make.tensor(2, 5, 8), make.projection(8, 12, groups)
    for tensor in (x, projection.weight):
        tensor.requires_grad_()
    macs = 2 * 5 * 8 * 12 // groups
    with FlopCounterMode(display=False) as forward:
        y = linear(x, projection)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 2 * macs
    assert backward.get_total_flops() == 2 * 2 * macs


@pytest.mark.parametrize("groups", GROUPS)
def test_fvcore_sees_the_true_cost(make, groups):
    fvcore = pytest.importorskip("fvcore.nn")

    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return linear(x, Projection(weight, None, groups))

    x, projection = make.tensor(2, 5, 8), make.projection(8, 12, groups)
    count = fvcore.FlopCountAnalysis(Layer(), (x, projection.weight))
    assert count.total() == 2 * 5 * 8 * 12 // groups
    assert not count.unsupported_ops()

"""The paper's linear map: a 1x1 convolution, grouped or not, over the last dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vt_fast.reference._checks import check_divides, check_shape


class Projection(NamedTuple):
    """The operands of a 1x1 convolution, stored as `torch.nn.Conv2d` stores them without the trailing ones.

    Args:
        weight: (out, in / groups). Output block g, rows [g out / groups, (g + 1) out / groups), reads input
            block g alone, channels [g in / groups, (g + 1) in / groups).
        bias: (out,) or None.
        groups: number of blocks, a divisor of both widths.

    Example:
        >>> Projection(torch.zeros(64, 32), groups=4).groups
        4
    """

    weight: Tensor
    bias: Tensor | None = None
    groups: int = 1


def linear(x: Tensor, projection: Projection | Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a (grouped) 1x1 convolution to the last dimension: x W + b, with W = weight^T.

    Costs in * out / groups multiply-accumulates per row, as FLOP counters see it too: no block-diagonal
    matrix is formed.

    Args:
        x: (..., in), any floating dtype.
        projection: weight (out, in / groups), bias (out,) or None, groups. Or a function, which is called in
            place of this one, such as a layer with hooks.

    Returns:
        (..., out).

    Raises:
        ValueError: the weight is not 2-D, the input width is not its width times groups, groups does not
            divide the output width, or the bias is not (out,).

    Example:
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # two groups of two inputs and one output
        >>> linear(torch.tensor([1.0, 1.0, 10.0, 10.0]), Projection(weight, groups=2)).tolist()
        [3.0, 70.0]
    """
    if not isinstance(projection, Projection):
        return projection(x)
    weight, bias, groups = projection
    check_shape("weight", weight, out=None, **{"in / groups": None})
    out, width = weight.shape
    check_divides("groups", groups, "the rows of `weight`", out)
    if x.dim() < 1 or x.shape[-1] != width * groups:
        raise ValueError(f"the input must be (..., in) with in = {int(width * groups)}, got {tuple(x.shape)}")
    if bias is not None:
        check_shape("bias", bias, out=out)
    if groups == 1:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, groups, width).transpose(0, 1)
    blocks = weight.reshape(groups, out // groups, width).transpose(1, 2)
    y = torch.bmm(rows, blocks).transpose(0, 1).reshape(*x.shape[:-1], out)
    return y if bias is None else y + bias

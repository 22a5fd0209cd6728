"""Initialisation: unit variance through every linear layer, zero at the end of every residual branch."""

from __future__ import annotations

import math

from torch import Tensor, nn


def lecun_normal_(weight: Tensor, fan_in: int, gain: float = 1.0) -> Tensor:
    """Fill `weight` in place from a normal distribution of deviation gain / sqrt(fan_in).

    Inputs of unit variance then give outputs of variance gain^2. A gain of 0 fills with zeros, as the last
    weight of a residual branch starts, so that the branch adds nothing at first.

    Args:
        weight: the tensor to fill, any shape.
        fan_in: number of inputs that each output sums over.
        gain: deviation of the outputs for unit-variance inputs.

    Returns:
        `weight` itself.

    Example:
        >>> import torch
        >>> lecun_normal_(torch.empty(2, 3), fan_in=3, gain=0.0).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    if gain == 0:
        return nn.init.zeros_(weight)
    return nn.init.normal_(weight, std=gain / math.sqrt(fan_in))

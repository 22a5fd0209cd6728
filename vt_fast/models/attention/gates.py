"""Squeeze-and-excitation and CBAM, from timm, which is optional."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.types import Device


def squeeze_excitation(
    channels: int, *, device: Device = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """A gate of the channels (Hu et al., arXiv 1709.01507, eqs. 2 to 4).

    Y = X sigmoid(W_2 relu(W_1 mean(X))) with C / 16 hidden channels.

    Args:
        channels: C of the map (B, C, H, W).
        device, dtype: of the parameters.

    Returns:
        timm's `SEModule`.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    return _made("squeeze_excite", "SEModule", channels, rd_divisor=1, device=device, dtype=dtype)


def cbam(channels: int, *, device: Device = None, dtype: torch.dtype | None = None) -> nn.Module:
    """A gate of the channels, then one of the pixels (Woo et al., arXiv 1807.06521, eqs. 1 to 3).

    X' = X sigmoid(MLP(mean(X)) + MLP(max(X))) with C / 16 hidden channels, then
    Y = X' sigmoid(conv7x7([mean(X'); max(X')])) of the mean and the maximum over the channels.

    Args:
        channels: C of the map (B, C, H, W).
        device, dtype: of the parameters.

    Returns:
        timm's `CbamModule`, whose MLP has no biases and whose convolution is followed by BatchNorm.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    return _made("cbam", "CbamModule", channels, device=device, dtype=dtype)


def _made(file: str, name: str, channels: int, **options: Any) -> nn.Module:
    try:
        layers = import_module(f"timm.layers.{file}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"timm's `{name}` needs timm: pip install timm") from error
    module: nn.Module = getattr(layers, name)(channels, **options)
    return module

"""Normalisation of the tokens before they are related."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.types import Device

from vt_fast import checks
from vt_fast.nn.options import TokenNorm

# Length of a token at initialisation: at CT = 1024 a scale of 0.19.
_LENGTH = 6.0


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm of rows (B L, CT), each a token, whose scale starts at 6 / sqrt(CT), but not above 1.

    Tokens of any width then start with a length of about 6. The curvature of the loss along the weights of a
    layer grows with the squared length of its inputs, and SGD diverges where curvature times learning rate
    is too large. The pooled features of a ResNet-18 have a length of this order too.

    Args:
        token_channels: CT.
        device, dtype: as in `torch.nn.BatchNorm1d`.

    Example:
        >>> TokenBatchNorm(1024).weight.mean().item()
        0.1875
    """

    def __init__(
        self, token_channels: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(token_channels, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Reset the statistics and the shift as BatchNorm does, and the scale to its smaller value."""
        super().reset_parameters()
        nn.init.constant_(self.weight, min(1.0, _LENGTH / math.sqrt(self.num_features)))


NORMS: dict[str, type[nn.LayerNorm] | type[TokenBatchNorm]] = {"batch": TokenBatchNorm, "layer": nn.LayerNorm}


def make_token_norm(
    token_norm: TokenNorm | None,
    token_channels: int,
    *,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Module | None:
    """A norm of rows (B L, CT), each a token.

    Both norms remove the scale of the map. They differ in what all samples have in common: a token is a
    weighted mean of pixels, and before training the tokens of all samples are nearly the same. LayerNorm sees
    one token at a time and keeps that common part: every layer behind it gets almost the same long input for
    all samples, along which SGD at the learning rates usual for ResNets overshoots from the first steps on.
    BatchNorm subtracts it, as it does everywhere in a ResNet. LayerNorm needs no batch and keeps no
    statistics: use it for tiny batches, or with an optimizer that adapts its steps to the gradients, as Adam
    does.

    The paper's equations and counts have no norm. The authors' code has a BatchNorm after nearly every
    convolution instead: logits, pooled tokens, keys, queries, values and the projected map. Those would have
    to be folded, which their statistics of a batch forbid in training. One norm of the tokens stands for
    them.

    Args:
        token_norm: "batch", "layer" or None.
        token_channels: CT.
        device, dtype: of the parameters.

    Raises:
        ValueError: another norm.

    Example:
        >>> make_token_norm("layer", 64).normalized_shape
        (64,)
        >>> make_token_norm(None, 64) is None
        True
    """
    checks.choice("token_norm", token_norm, NORMS, optional=True)
    return None if token_norm is None else NORMS[token_norm](token_channels, device=device, dtype=dtype)

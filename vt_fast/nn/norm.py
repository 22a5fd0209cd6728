"""What normalises the tokens before they are related."""

from __future__ import annotations

import math

from torch import nn

# Length of a token at initialisation: at CT = 1024 a scale of 0.19.
_LENGTH = 6.0


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm of rows (B L, CT), each a token, whose scale starts at 6 / sqrt(CT), but not above 1.

    Tokens then start with a length of about 6 however wide they are. The curvature of the loss along the
    weights of a layer grows with the squared length of its inputs, and SGD diverges where that times the
    rate is too large. The last map of a ResNet-18, averaged over its pixels, has a length of this order too.

    Args:
        token_channels: CT.

    Example:
        >>> TokenBatchNorm(1024).weight.mean().item()
        0.1875
    """

    def __init__(self, token_channels: int) -> None:
        super().__init__(token_channels)

    def reset_parameters(self) -> None:
        """The statistics and the shift of any BatchNorm, and the smaller scale."""
        super().reset_parameters()
        nn.init.constant_(self.weight, min(1.0, _LENGTH / math.sqrt(self.num_features)))


NORMS: dict[str, type[nn.LayerNorm] | type[TokenBatchNorm]] = {
    "batch": TokenBatchNorm,
    "layer": nn.LayerNorm,
}


def token_norm(norm: bool | str, token_channels: int) -> nn.Module | None:
    """A norm of rows (B L, CT), each a token.

    Both make the scale of the map irrelevant. They differ in what all samples share: a token is a weighted
    mean of pixels, and before any training the tokens of all samples nearly agree. LayerNorm sees one token
    at a time and passes that on: each layer behind it gets almost the same long input for all samples, along
    which SGD at the rates usual for ResNets overshoots, from the first steps on. BatchNorm subtracts it, as
    it does everywhere in a ResNet. LayerNorm needs no batch and keeps no statistics: take it where the batch
    is tiny, or where the optimizer fits its steps to the gradients, as Adam does.

    Args:
        norm: "batch", "layer" or True for the same, or False for none.
        token_channels: CT.

    Raises:
        ValueError: another norm.

    Example:
        >>> token_norm("layer", 64).normalized_shape
        (64,)
        >>> token_norm(False, 64) is None
        True
    """
    if norm is False:
        return None
    name = "layer" if norm is True else norm
    if name not in NORMS:
        known = ", ".join(f'"{each}"' for each in NORMS)
        raise ValueError(f"`norm` must be one of {known} or a bool, got {norm!r}")
    return NORMS[name](token_channels)

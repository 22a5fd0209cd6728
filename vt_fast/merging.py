"""How tokens of disjoint sets of pixels become those of all pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from vt_fast.layout import unflatten


def merged(tokens: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`vt_fast.functional.merge` returns; the arguments are not checked."""
    num_heads = lse.shape[2] // tokens.shape[2]
    highest = lse.detach().amax(0)
    highest = torch.where(highest == -torch.inf, 0, highest)
    weights = torch.exp(lse - highest)
    total = weights.sum(0)
    # log and division see 1 in place of 0, so that an empty result has gradients of 0, not NaN.
    positive = torch.where(total == 0, 1, total)
    merged_lse = torch.where(total == 0, -torch.inf, torch.log(positive) + highest)
    merged_lse = torch.where(highest == torch.inf, highest, merged_lse)  # not inf - inf
    shares = unflatten(weights / positive, -1, (num_heads, -1)).transpose(-1, -2)[..., None]
    empty = unflatten(lse == -torch.inf, -1, (num_heads, -1)).transpose(-1, -2)[..., None]
    blocks = unflatten(tokens.to(lse.dtype), -1, (num_heads, -1))
    blocks = torch.where(empty, 0, blocks)  # whatever an empty set's tokens are
    return (shares * blocks).sum(0).flatten(-2).to(tokens.dtype), merged_lse

"""What becomes of the operands of a call before an op takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast import checks
from vt_fast.backends.contract import row_count
from vt_fast.layout import channel_count
from vt_fast.precision import autocast


def scaled(name: str, scale: Any, rows: Any) -> Any:
    """Rows times the scale of their logits; other arguments are left for the checks to refuse."""
    if type(scale) is float and scale == 1.0:
        return rows
    checks.number(name, scale)
    if type(scale) is int:
        scale = float(scale)  # a tensor is not multiplied with more than 64 bits
    if isinstance(rows, torch.fx.Proxy) or (isinstance(rows, Tensor) and rows.is_floating_point()):
        return rows * scale
    return rows


def autocast_unread(x: Tensor, *operands: Tensor | None) -> tuple[Any, ...]:
    """`autocast` where x has the shape, the strides and the dtype alone: it is not read, nor copied."""
    like, *others = autocast(x.new_empty(0), *operands)
    if like.dtype != x.dtype:
        x = torch.empty_strided(x.shape, x.stride(), dtype=like.dtype, device=x.device)
    return x, *others


def effective_heads(
    x: Tensor,
    queries: Tensor | None,
    extra_values: Tensor | None,
    num_heads: int,
    normalize: str | None,
    scores: Tensor | None,
    offsets: Tensor | None,
) -> int:
    """1 where rows that see all channels have no softmax in common, so that heads do not matter.

    Otherwise ``num_heads``, also where the op refuses it.
    """
    if queries is not None and queries.shape[-1] != channel_count(x):
        return num_heads
    if normalize == "tokens" or extra_values is not None or row_count(queries, scores, offsets) % num_heads:
        return num_heads
    return 1

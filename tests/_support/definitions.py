"""What tokenize and project compute with any switch, written out for one bag in float64."""

from __future__ import annotations

import torch
from torch import Tensor

INF = float("inf")


def logits(x: Tensor, rows: Tensor | None, scores: Tensor | None, bias: Tensor | None, heads: int) -> Tensor:
    """(R, N) of one bag x (N, C). Removed rows get a bias of 0."""
    found = torch.zeros((), dtype=x.dtype)
    if rows is not None:
        blocks = rows.shape[1] != x.shape[1]
        parts = x.unflatten(1, (heads if blocks else 1, -1))
        found = torch.einsum("nhc,hlc->hln", parts, rows.unflatten(0, (parts.shape[1], -1))).flatten(0, 1)
    if scores is not None:
        found = found + scores
    return found if bias is None else found + torch.where(bias == -INF, 0, bias)[:, None]


def over_tokens(found: Tensor, heads: int, removed: Tensor) -> Tensor:
    """The softmax over the rows of each head; 0 for removed rows."""
    groups, gone = found.unflatten(0, (heads, -1)), removed.unflatten(0, (heads, -1))[..., None]
    groups = torch.where(gone & ~gone.all(1, keepdim=True), -INF, groups)
    return torch.where(gone, 0, groups.softmax(1)).flatten(0, 1)


def cleared(value: Tensor | None, gone: Tensor) -> Tensor | None:
    """0 in rows that must not be used."""
    return None if value is None else torch.where(gone[:, None], 0, value)


def removed_rows(rows: Tensor | None, scores: Tensor | None, bias: Tensor | None) -> Tensor:
    count = rows.shape[0] if rows is not None else scores.shape[0]
    return torch.zeros(count, dtype=torch.bool) if bias is None else bias == -INF


def pool(
    x: Tensor,
    rows: Tensor | None,
    values: Tensor | None,
    scores: Tensor | None,
    bias: Tensor | None,
    valid: Tensor,
    pixel_bias: Tensor | None,
    heads: int,
    normalize: str | None,
    eps: float | None,
) -> tuple[Tensor, Tensor]:
    """Tokens and statistics of one bag."""
    gone = removed_rows(rows, scores, bias)
    rows, scores = cleared(rows, gone), cleared(scores, gone)
    x, scores = x[valid], None if scores is None else scores[:, valid]
    if eps is not None:
        x = torch.nn.functional.layer_norm(x, x.shape[1:], eps=eps)
    pooled = x if values is None else values[valid]
    found = logits(x, rows, scores, bias, heads)
    if pixel_bias is not None:
        found = found + pixel_bias[valid]
    blocks = rows is not None and rows.shape[1] != x.shape[1]
    if normalize == "pixels":
        some = x.shape[0] > 0
        weights = found.softmax(1)
        stats = found.logsumexp(1) if some else torch.full(found.shape[:1], -INF, dtype=x.dtype)
        stats = torch.where(gone, -INF, stats)
    else:
        weights = found if normalize is None else over_tokens(found, heads, gone)
        weights = torch.where(gone[:, None], 0, weights)
        stats = weights.sum(1)
    weights = torch.where(gone[:, None], 0, weights)
    if blocks:
        parts = pooled.unflatten(1, (heads, -1))
        tokens = torch.einsum("hln,nhd->lhd", weights.unflatten(0, (heads, -1)), parts).flatten(1)
    else:
        tokens = weights @ pooled
    return tokens, stats


def spread(
    x: Tensor,
    keys: Tensor | None,
    values: Tensor,
    scores: Tensor | None,
    bias: Tensor | None,
    heads: int,
    normalize: str | None,
) -> Tensor:
    """The map of one bag."""
    gone = removed_rows(keys, scores, bias)
    keys, scores = cleared(keys, gone), cleared(scores, gone)
    found = logits(x, keys, scores, bias, heads)
    if normalize == "tokens":
        weights = over_tokens(found, heads, gone)
    else:
        weights = torch.where(gone[:, None], 0, found.exp() if normalize == "exp" else found)
    if values.shape[0] == found.shape[0]:
        return weights.t() @ cleared(values, gone)
    parts = values.unflatten(1, (heads, -1))  # (L, heads, D)
    parts = torch.where(gone.unflatten(0, (heads, -1)).t()[..., None], 0, parts)
    return torch.einsum("hln,lhd->nhd", weights.unflatten(0, (heads, -1)), parts).flatten(1)

"""Cross-attention between a map and a few tokens, with every projection of the map on the token side.

Weights are those of linear layers, (out, in). The map has N pixels of C channels, keys and queries have E
channels and values D, in `num_heads` heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vt_fast import functional
from vt_fast.layout import unflatten
from vt_fast.patches.base import why_not_plain
from vt_fast.precision import autocast


def pays(pixels: int, tokens: int, channels: int, keys: int, values: int, num_heads: int) -> bool:
    """Whether folding takes fewer multiplications than projecting all pixels, which have `channels` channels.

    The projections of the tokens themselves are the same either way.
    """
    unfolded = pixels * (channels + tokens) * (keys + values)
    folded = 2 * pixels * num_heads * tokens * channels + tokens * channels * (keys + values)
    return folded < unfolded


def fits(x: Tensor, channels: int | None = None) -> bool:
    """Whether x is (B, N, C); a host's own forward has the better error for others.

    Ask only after `why_not`: members that tell the channels may have been replaced.
    """
    return x.dim() == 3 and channels in (None, x.shape[2])


def sums_may_overflow(x: Tensor) -> bool:
    """Whether sums over all pixels, which hosts never form, are in float16, here or by autocast."""
    return bool(autocast(x)[0].dtype == torch.float16)


def rows_of(queries: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """Rows (.., num_heads * L, C) whose products with pixels are those of queries (.., L, E) with keys."""
    queries = unflatten(queries, -1, (num_heads, -1))
    rows = torch.einsum("...lhd,hdc->...hlc", queries, unflatten(key, 0, (num_heads, -1)))
    return rows.flatten(-3, -2)


def with_bias_gradient(queries: Tensor, bias: Tensor | None) -> Tensor:
    """The queries, such that the bias of the keys, which the softmax cancels, gets a gradient of 0.

    With none, optimizers would skip it, and `DistributedDataParallel` would wait for it.
    """
    if bias is None or not (torch.is_grad_enabled() and bias.requires_grad):
        return queries
    return queries + 0 * bias


def pool(
    x: Tensor,
    rows: Tensor,
    value: Tensor,
    bias: Tensor | None,
    num_heads: int,
    *,
    scale: float,
    values: Tensor | None = None,
    norm: Any = None,
    mask: Tensor | None = None,
    pixel_bias: Tensor | None = None,
) -> Tensor:
    """Attention of L queries over the pixels, (B, L, D), before the output projection.

    Args:
        x: (B, N, C), what the keys are projections of.
        rows: see :func:`rows_of`; with a norm, of :func:`normed` weights.
        value, bias: of the value projection, (D, C) and (D,).
        num_heads: of the attention.
        scale: multiplies the logits.
        values: (B, N, C), what the values are projections of; by default x.
        norm: a LayerNorm of x, which the op then applies.
        mask, pixel_bias: see :func:`vt_fast.tokenize`.
    """
    if norm is not None:
        value, bias = normed(value, norm), normed_bias(value, bias, norm)
    pooled = functional.tokenize(
        x,
        rows,
        scale=scale,
        mask=mask,
        pixel_bias=pixel_bias,
        values=values,
        layer_norm_eps=None if norm is None else norm.eps,
    )
    pooled = unflatten(pooled, 1, (num_heads, -1))
    blocks = torch.einsum("bhlc,hdc->blhd", pooled, unflatten(value, 0, (num_heads, -1))).flatten(2)
    if bias is None:
        return blocks
    some = mask if pixel_bias is None else pixel_bias > -torch.inf
    if some is not None:  # a sample without pixels has no values, thus no bias
        bias = bias * some.any(1)[:, None, None]
    return blocks + bias


def normed(weight: Tensor, norm: Any) -> Tensor:
    """The weight of a projection after a LayerNorm, with the norm's weight folded in."""
    return weight if norm.weight is None else weight * norm.weight


def normed_bias(weight: Tensor, bias: Tensor | None, norm: Any) -> Tensor | None:
    """The bias of a projection after a LayerNorm, with the norm's bias folded in."""
    return bias if norm.bias is None else F.linear(norm.bias, weight, bias)


def spread(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    query: nn.Linear,
    out: nn.Linear,
    num_heads: int,
    *,
    scale: float,
    residual: Tensor | None = None,
) -> Tensor:
    """Attention of the pixels over L tokens, through the output projection, (B, N, D).

    Args:
        x: (B, N, C), what the queries are projections of.
        keys, values: (B, L, E), of the tokens.
        query, out: the projections of the pixels and of the result.
        num_heads: of the attention.
        scale: multiplies the logits.
        residual: (B, N, D), added to the result.
    """
    keys = unflatten(keys * scale, -1, (num_heads, -1))
    rows = torch.einsum("blhd,hdc->bhlc", keys, unflatten(query.weight, 0, (num_heads, -1)))
    token_bias = None
    if query.bias is not None:
        token_bias = torch.einsum("blhd,hd->bhl", keys, unflatten(query.bias, 0, (num_heads, -1))).flatten(1)
    weight = unflatten(out.weight, 1, (num_heads, -1))
    summed = torch.einsum("blhd,chd->bhlc", unflatten(values, -1, (num_heads, -1)), weight)
    if out.bias is not None:  # the weights of each head sum to 1
        summed = summed + out.bias / num_heads
    return functional.project(
        x,
        rows.flatten(1, 2),
        summed.flatten(1, 2),
        num_heads=num_heads,
        token_bias=token_bias,
        residual=residual,
    )


def split_mask(mask: Tensor | None, x: Tensor) -> tuple[Tensor | None, Tensor | None] | None:
    """A mask of attention as the op's `mask` and `pixel_bias`; None where it does not concern pixels alone.

    Also None for dtypes that PyTorch's fused attention does not take.

    Args:
        mask: bool, True where a pixel takes part, or a bias; (B or 1, 1, 1, N).
        x: (B, N, C).
    """
    if mask is None:
        return None, None
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] != 1 or mask.shape[3] != x.shape[1]:
        return None
    flat = mask[:, 0, 0].expand(x.shape[0], -1)
    if mask.dtype == torch.bool:
        return flat, None
    return (None, flat) if flat.dtype in (x.dtype, torch.float32) else None


def of_attention(module: nn.MultiheadAttention) -> tuple[Any, Any, Any, Any, Any]:
    """The weights of query, key and value of PyTorch's attention, and the biases of query and value.

    All biases are one parameter, so that the keys' needs no :func:`with_bias_gradient`.
    """
    weights: tuple[Any, ...] = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    if module.in_proj_bias is None:
        return weights[0], weights[1], weights[2], None, None
    query, _, value = module.in_proj_bias.chunk(3)
    return weights[0], weights[1], weights[2], query, value


def why_not_attention(module: nn.MultiheadAttention) -> str | None:
    """Why PyTorch's attention, which the rewrite does not call, is not the one that hosts make."""
    if module.bias_k is not None or module.add_zero_attn or not module.batch_first:
        return "its attention has options that the host does not use"
    if module.dropout:
        return "its attention has dropout"
    return why_not_plain(module, NonDynamicallyQuantizableLinear, "out_proj")

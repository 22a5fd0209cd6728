"""The two directions of the attention in the decoders of SAM and its relatives."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from vt_fast.patches.absorbed import pays, pool, rows_of, spread, with_bias_gradient
from vt_fast.patches.base import full_name, why_not_plain

MEMBERS = "q_proj k_proj v_proj out_proj o_proj"
BLOCK = "self_attn cross_attn_token_to_image cross_attn_image_to_token mlp"
NOTE = "calls with too many tokens for folding to pay run its own forward"


def why_not_block(
    block: Any, known: tuple[str, ...], tokens: Tensor | None = None, image: Tensor | None = None
) -> str | None:
    """Why a block cannot be rewritten, for these tokens and pixels if given.

    Args:
        block: with its two attentions, which the rewrite does not call.
        known: full names of their classes.
        tokens, image: see :func:`why_not`.
    """
    for name in ("cross_attn_token_to_image", "cross_attn_image_to_token"):
        attention = block._modules[name]
        if full_name(type(attention)) not in known:
            return f"{name} is a {type(attention).__name__}"
        reason = why_not_plain(block, type(attention), name) or why_not(attention, tokens, image)
        if reason is not None:
            return reason
    return None


def why_not(attention: Any, tokens: Tensor | None = None, image: Tensor | None = None) -> str | None:
    """Why an attention cannot be rewritten, for these tokens (.., L, C) and pixels (.., N, C) if given."""
    if reason := why_not_plain(attention, nn.Linear, "q_proj", "k_proj", "v_proj", _out(attention)):
        return reason
    if tokens is None or image is None:
        return None
    if math.prod(tokens.shape[:-2]) != math.prod(image.shape[:-2]):
        return "one image is broadcast to several prompts"
    width = attention.internal_dim
    if not pays(image.shape[-2], tokens.shape[-2], image.shape[-1], width, width, _heads(attention)):
        return "so many tokens that folding does not pay"
    return None


def tokens_to_image(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tokens (B, L, C) look at pixels: k are the pixels with their positions, v without, (B, N, C) both."""
    heads, key, value = _heads(attention), attention.k_proj, attention.v_proj
    rows = rows_of(with_bias_gradient(attention.q_proj(q), key.bias), key.weight, heads)
    pooled = pool(k, rows, value.weight, value.bias, heads, scale=_scale(attention), values=v)
    return getattr(attention, _out(attention))(pooled)  # type: ignore[no-any-return]


def image_to_tokens(attention: Any, q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None) -> Tensor:
    """Pixels (B, N, C) look at tokens (B, L, C)."""
    return spread(
        q,
        attention.k_proj(k),
        attention.v_proj(v),
        attention.q_proj,
        getattr(attention, _out(attention)),
        _heads(attention),
        scale=_scale(attention),
        residual=residual,
    )


def _heads(attention: Any) -> int:
    heads: int = getattr(attention, "num_heads", None) or attention.num_attention_heads
    return heads


def _scale(attention: Any) -> float:
    return float((attention.internal_dim // _heads(attention)) ** -0.5)


def _out(attention: Any) -> str:
    return "o_proj" if "o_proj" in attention._modules else "out_proj"

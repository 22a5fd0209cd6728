"""open_clip: the pooling head of CLIP's ResNets, and CoCa's attentional pooler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vt_fast.patches.absorbed import (
    fits,
    normed,
    of_attention,
    pays,
    pool,
    rows_of,
    why_not_attention,
    with_bias_gradient,
)
from vt_fast.patches.base import Patch, full_name, own_forward, why_not_plain


class AttentionPool2d(Patch):
    """The mean of the pixels looks at itself and at all pixels; the host projects a query for each pixel."""

    hosts = ("open_clip.modified_resnet.AttentionPool2d",)
    members = "positional_embedding k_proj q_proj v_proj c_proj"

    @staticmethod
    def why_not(module: Any) -> str | None:
        return why_not_plain(module, nn.Linear, "k_proj", "q_proj", "v_proj", "c_proj")

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.dim() != 4 or AttentionPool2d.why_not(self) is not None:
            return own_forward(self, x)  # type: ignore[no-any-return]
        pixels = x.flatten(2).transpose(1, 2)
        pixels = torch.cat([pixels.mean(1, keepdim=True), pixels], 1)
        pixels = pixels + self.positional_embedding.to(x.dtype)
        heads = self.num_heads
        query = with_bias_gradient(self.q_proj(pixels[:, :1]), self.k_proj.bias)
        rows = rows_of(query, self.k_proj.weight, heads)
        scale = (pixels.shape[2] // heads) ** -0.5
        pooled = pool(pixels, rows, self.v_proj.weight, self.v_proj.bias, heads, scale=scale)
        return self.c_proj(pooled)[:, 0]  # type: ignore[no-any-return]


class AttentionalPooler(Patch):
    """Learned queries, shared by the batch, look at all tokens. The normalised tokens are never written."""

    hosts = ("open_clip.transformer.AttentionalPooler",)
    members = "query attn ln_q ln_k"

    @staticmethod
    def why_not(module: Any) -> str | None:
        attention = module.attn
        if reason := why_not_plain(module, nn.MultiheadAttention, "attn"):
            return reason
        if full_name(type(module.ln_k)) not in ("torch.nn.modules.normalization.LayerNorm", *_NORMS):
            return f"ln_k is a {type(module.ln_k).__name__}"
        if reason := why_not_plain(module, type(module.ln_k), "ln_k"):
            return reason
        if reason := why_not_attention(attention):
            return reason
        tokens, width = module.query.shape
        if not pays(2**20, tokens, attention.kdim, width, width, attention.num_heads):
            return f"it has {tokens} queries: folding does not pay"
        return None

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        if AttentionalPooler.why_not(self) is not None or not fits(x, self.attn.kdim):
            return own_forward(self, x)  # type: ignore[no-any-return]
        attention, norm = self.attn, self.ln_k
        heads = attention.num_heads
        query, key, value, query_bias, bias = of_attention(attention)
        rows = rows_of(F.linear(self.ln_q(self.query), query, query_bias), normed(key, norm), heads)
        pooled = pool(x, rows, value, bias, heads, scale=attention.head_dim**-0.5, norm=norm)
        return attention.out_proj(pooled)  # type: ignore[no-any-return]


_NORMS = ("open_clip.transformer.LayerNorm",)

"""transformers: the pooling heads of SigLIP and SigLIP2, whose probe looks at all patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vt_fast.nn.frozen import kept
from vt_fast.patches.absorbed import fits, of_attention, pool, rows_of, why_not_attention
from vt_fast.patches.base import Patch, own_forward, why_not_plain

_MEMBERS = "probe attention layernorm mlp"


def _why_not(module: Any) -> str | None:
    attention = module.attention
    if reason := why_not_plain(module, nn.MultiheadAttention, "attention"):
        return reason
    if attention.in_proj_weight is None:
        return "its keys and values have other widths than its probe"
    return why_not_attention(attention)


def _pooled(module: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    attention = module.attention
    heads, width = attention.num_heads, attention.head_dim
    query, key, value, query_bias, bias = of_attention(attention)
    sources = (module.probe, attention.in_proj_weight, attention.in_proj_bias)
    rows = kept(
        module,
        "rows",
        sources,
        lambda: rows_of(F.linear(module.probe[0], query, query_bias), key, heads),
        heads,
    )
    x = attention.out_proj(pool(x, rows, value, bias, heads, scale=width**-0.5, mask=mask))
    return (x + module.mlp(module.layernorm(x)))[:, 0]  # type: ignore[no-any-return]


class SiglipHead(Patch):
    """SigLIP's."""

    hosts = ("transformers.models.siglip.modeling_siglip.SiglipMultiheadAttentionPoolingHead",)
    members = _MEMBERS

    why_not = staticmethod(_why_not)

    @staticmethod
    def forward(self: Any, hidden_state: Tensor) -> Tensor:
        if _why_not(self) is not None or not fits(hidden_state, self.attention.embed_dim):
            return own_forward(self, hidden_state)  # type: ignore[no-any-return]
        return _pooled(self, hidden_state)


class Siglip2Head(Patch):
    """SigLIP2's, which has a mask for padded patches."""

    hosts = ("transformers.models.siglip2.modeling_siglip2.Siglip2MultiheadAttentionPoolingHead",)
    members = _MEMBERS
    note = "masks that are not (B, N) run its own forward; where all patches are masked, they pool to zero"

    why_not = staticmethod(_why_not)

    @staticmethod
    def forward(self: Any, hidden_state: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask_fits = attention_mask is None or attention_mask.shape == hidden_state.shape[:2]
        if _why_not(self) is not None or not (mask_fits and fits(hidden_state, self.attention.embed_dim)):
            return own_forward(self, hidden_state, attention_mask)  # type: ignore[no-any-return]
        return _pooled(self, hidden_state, None if attention_mask is None else attention_mask.bool())

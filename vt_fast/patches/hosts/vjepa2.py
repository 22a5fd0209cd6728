"""transformers: the cross-attention layer of V-JEPA 2's attentive pooler, with the LayerNorm before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vt_fast.patches.absorbed import fits, normed, pays, pool, rows_of, with_bias_gradient
from vt_fast.patches.base import Patch, full_name, own_forward, why_not_plain, why_weights_are_returned


class PoolerCrossAttentionLayer(Patch):
    """A query looks at all patches of a video. The normalised patches are never written."""

    hosts = ("transformers.models.vjepa2.modeling_vjepa2.VJEPA2PoolerCrossAttentionLayer",)
    members = "layer_norm1 cross_attn layer_norm2 mlp"
    note = "masks, and training with attention dropout, run its own forward"

    @staticmethod
    def why_not(module: Any) -> str | None:
        attention = module.cross_attn
        if full_name(type(attention)) != f"{type(module).__module__}.VJEPA2PoolerCrossAttention":
            return f"cross_attn is a {type(attention).__name__}"
        reason = why_weights_are_returned(attention.config)
        reason = reason or why_not_plain(module, type(attention), "cross_attn")
        reason = reason or why_not_plain(module, nn.LayerNorm, "layer_norm1")
        return reason or why_not_plain(attention, nn.Linear, "k_proj", "v_proj")

    @staticmethod
    def forward(
        self: Any, queries: Tensor, hidden_state: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        attention, norm = self.cross_attn, self.layer_norm1
        if (
            attention_mask is not None
            or PoolerCrossAttentionLayer.why_not(self) is not None
            or (attention.training and attention.dropout > 0)
            or not _fit(attention, queries, hidden_state)
        ):
            return own_forward(self, queries, hidden_state, attention_mask)  # type: ignore[no-any-return]
        heads, key, value = attention.num_heads, attention.k_proj, attention.v_proj
        rows = rows_of(
            with_bias_gradient(attention.q_proj(queries), key.bias), normed(key.weight, norm), heads
        )
        pooled = pool(hidden_state, rows, value.weight, value.bias, heads, scale=attention.scale, norm=norm)
        x = queries + pooled
        return x + self.mlp(self.layer_norm2(x)), None


def _fit(attention: Any, queries: Tensor, x: Tensor) -> bool:
    """Whether x is a map for whose size folding pays."""
    channels = attention.k_proj.in_features
    return fits(x, channels) and pays(
        x.shape[1], queries.shape[1], channels, channels, channels, attention.num_heads
    )

"""transformers: Perceiver's cross-attention from latents to inputs, with the LayerNorm of the inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vt_fast.patches.absorbed import fits, normed, pays, pool, rows_of, split_mask, with_bias_gradient
from vt_fast.patches.base import Patch, acts, own_forward, why_not_plain


class PerceiverCrossAttention(Patch):
    """The class is that of the self-attention too, which is left alone."""

    hosts = ("transformers.models.perceiver.modeling_perceiver.PerceiverSelfAttention",)
    members = "layernorm1 layernorm2 query key value dropout"
    note = (
        "wanted attention weights, masks that are not (B, 1, 1, N), training with attention dropout, and "
        "queries for which folding does not pay run its own forward"
    )

    @staticmethod
    def concerns(module: Any) -> bool:
        return not isinstance(module.layernorm2, nn.Identity)

    @staticmethod
    def why_not(module: Any) -> str | None:
        reason = why_not_plain(module, nn.LayerNorm, "layernorm2")
        return reason or why_not_plain(module, nn.Linear, "key", "value")

    @staticmethod
    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        inputs: Tensor | None = None,
        inputs_mask: Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor]:
        masks = None if inputs is None else split_mask(inputs_mask, inputs)
        if (
            inputs is None
            or masks is None
            or output_attentions
            or acts(self.dropout)
            or PerceiverCrossAttention.why_not(self) is not None
            or not _fit(self, hidden_states, inputs)
        ):
            return own_forward(  # type: ignore[no-any-return]
                self, hidden_states, attention_mask, inputs, inputs_mask, output_attentions
            )
        heads, norm, key, value = self.num_heads, self.layernorm2, self.key, self.value
        query = with_bias_gradient(self.query(self.layernorm1(hidden_states)), key.bias)
        pooled = pool(
            inputs,
            rows_of(query, normed(key.weight, norm), heads),
            value.weight,
            value.bias,
            heads,
            scale=self.qk_channels_per_head**-0.5,
            norm=norm,
            mask=masks[0],
            pixel_bias=masks[1],
        )
        return (pooled,)


def _fit(module: Any, queries: Tensor, inputs: Tensor) -> bool:
    """Whether folding pays, and the host has no batch to broadcast."""
    channels = module.key.in_features
    return (
        fits(inputs, channels)
        and queries.shape[0] == inputs.shape[0]
        and pays(
            *(inputs.shape[1], queries.shape[1], channels),
            *(module.qk_channels, module.v_channels, module.num_heads),
        )
    )

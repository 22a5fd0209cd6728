"""perceiver-pytorch: cross-attention from latents to a context, with the LayerNorm of the context."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vt_fast import functional
from vt_fast.layout import unflatten
from vt_fast.patches.absorbed import fits, normed, pays, pool, rows_of, sums_may_overflow
from vt_fast.patches.base import Patch, acts, full_name, own_forward, why_not_plain

_NO_DROPOUT = nn.Identity()  # as in the attention of PerceiverIO
_MODULES = ("perceiver_pytorch.perceiver_pytorch", "perceiver_pytorch.perceiver_io")


class CrossAttention(Patch):
    """A `PreNorm` of a context holds the norms and the attention; other ones are left alone."""

    hosts = tuple(f"{module}.PreNorm" for module in _MODULES)
    members = "fn norm norm_context"
    note = (
        "training with attention dropout, latents for which folding does not pay, and inverted attention in "
        "float16 run its own forward; where all of the context is masked, it pools to zero"
    )

    @staticmethod
    def concerns(module: Any) -> bool:
        return module.norm_context is not None

    @staticmethod
    def why_not(module: Any) -> str | None:
        kind = type(module.fn)
        if full_name(kind) != f"{type(module).__module__}.Attention":
            return f"fn is a {kind.__name__}"
        if getattr(module.fn, "queries_contribute_kv", False):
            return "the latents are among the keys too"
        reason = why_not_plain(module, kind, "fn") or why_not_plain(module, nn.LayerNorm, "norm_context")
        return reason or why_not_plain(module.fn, nn.Linear, "to_kv")

    @staticmethod
    def forward(self: Any, x: Tensor, **kwargs: Any) -> Tensor:
        context, attention = kwargs.get("context"), self.fn
        if (
            context is None
            or not kwargs.keys() <= {"context", "mask", "inverted_attention"}
            or (kwargs.get("inverted_attention") and sums_may_overflow(context))
            or acts(attention._modules.get("dropout", _NO_DROPOUT))
            or CrossAttention.why_not(self) is not None
            or not _fit(attention, x, context)
        ):
            return own_forward(self, x, **kwargs)  # type: ignore[no-any-return]
        mask, heads, norm = kwargs.get("mask"), attention.heads, self.norm_context
        mask = None if mask is None else mask.flatten(1)
        key, value = attention.to_kv.weight.chunk(2)
        query = attention.to_q(self.norm(x))
        if kwargs.get("inverted_attention"):
            pooled = _inverted(norm(context), rows_of(query, key, heads), attention, mask)
            pooled = pooled @ value.unflatten(0, (heads, -1)).mT  # (B, heads, L, E / heads)
            return attention.to_out(pooled.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
        rows = rows_of(query, normed(key, norm), heads)
        pooled = pool(context, rows, value, None, heads, scale=attention.scale, norm=norm, mask=mask)
        return attention.to_out(pooled)  # type: ignore[no-any-return]


def _inverted(context: Tensor, rows: Tensor, attention: Any, mask: Tensor | None) -> Tensor:
    """Latents compete for each pixel, and take means: (B, heads, L, C)."""
    sums, mass = functional.tokenize(
        context,
        rows,
        num_heads=attention.heads,
        scale=attention.scale,
        mask=mask,
        normalize="tokens",
        return_stats=True,
    )
    means = sums / mass.clamp_min(1e-8).to(sums.dtype)[..., None]
    return unflatten(means, 1, (attention.heads, -1))


def _fit(attention: Any, x: Tensor, context: Tensor) -> bool:
    """Whether folding pays, and the host has no batch to broadcast."""
    channels, width = attention.to_kv.in_features, attention.to_kv.out_features // 2
    return (
        fits(context, channels)
        and x.shape[0] == context.shape[0]
        and pays(context.shape[1], x.shape[1], channels, width, width, attention.heads)
    )

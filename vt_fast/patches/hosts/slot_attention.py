"""slot-attention: slots compete for the pixels, several times, without projections of the pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vt_fast import functional
from vt_fast.layout import unflatten
from vt_fast.patches.absorbed import rows_of, sums_may_overflow
from vt_fast.patches.base import Patch, own_forward, why_not_plain

_MEMBERS = (
    "slots_mu slots_logsigma to_q to_k to_v gru mlp norm_input norm_slots norm_pre_ff "
    "split_heads merge_heads combine_heads"
)


class SlotAttention(Patch):
    """With one head."""

    hosts = ("slot_attention.slot_attention.SlotAttention",)
    members = _MEMBERS
    note = "float16 runs its own forward"

    @staticmethod
    def why_not(module: Any) -> str | None:
        return why_not_plain(module, nn.Linear, "to_k", "to_v")

    @staticmethod
    def forward(self: Any, inputs: Tensor, num_slots: int | None = None) -> Tensor:
        if sums_may_overflow(inputs) or SlotAttention.why_not(self) is not None:
            return own_forward(self, inputs, num_slots)  # type: ignore[no-any-return]
        return _slots(self, inputs, num_slots, 1)


class MultiHeadSlotAttention(Patch):
    """Slots compete in each head."""

    hosts = ("slot_attention.multi_head_slot_attention.MultiHeadSlotAttention",)
    members = _MEMBERS
    note = "float16, and more slots than pay for folding, run its own forward"

    why_not = staticmethod(SlotAttention.why_not)

    @staticmethod
    def forward(self: Any, inputs: Tensor, num_slots: int | None = None) -> Tensor:
        if sums_may_overflow(inputs) or SlotAttention.why_not(self) is not None:
            return own_forward(self, inputs, num_slots)  # type: ignore[no-any-return]
        inner, channels = self.to_k.weight.shape
        heads = inner // round(self.scale**-2)
        slots = self.num_slots if num_slots is None else num_slots
        # Products a pixel, without and with folding.
        if 2 * inner * (channels + self.iters * slots) <= 2 * self.iters * heads * slots * channels:
            return own_forward(self, inputs, num_slots)  # type: ignore[no-any-return]
        return _slots(self, inputs, num_slots, heads)


def _slots(module: Any, x: Tensor, num_slots: int | None, heads: int) -> Tensor:
    shape = (x.shape[0], module.num_slots if num_slots is None else num_slots, module.dim)
    sigma = module.slots_logsigma.exp().expand(shape)
    # The very call of the host, so that it draws the same numbers.
    slots = module.slots_mu.expand(shape) + sigma * torch.randn(shape, device=x.device, dtype=x.dtype)
    x = module.norm_input(x)
    total = x.sum(1, keepdim=True)
    for _ in range(module.iters):
        found = _means(module, x, total, module.to_q(module.norm_slots(slots)), heads)
        if heads > 1 or "combine_heads" in module._modules:
            found = module.combine_heads(found)
        slots = module.gru(found.flatten(0, 1), slots.flatten(0, 1)).view(shape)
        slots = slots + module.mlp(module.norm_pre_ff(slots))
    return slots  # type: ignore[no-any-return]


def _means(module: Any, x: Tensor, total: Tensor, queries: Tensor, heads: int) -> Tensor:
    """Means of the values over the pixels of each slot, (B, L, E)."""
    key, value = module.to_k, module.to_v
    token_bias = None
    if key.bias is not None:
        by_head = unflatten(queries, 2, (heads, -1))
        token_bias = module.scale * torch.einsum("blhd,hd->bhl", by_head, unflatten(key.bias, 0, (heads, -1)))
    sums, mass = functional.tokenize(
        x,
        rows_of(queries, key.weight, heads),
        num_heads=heads,
        scale=module.scale,
        token_bias=None if token_bias is None else token_bias.flatten(1),
        normalize="tokens",
        return_stats=True,
    )
    # The host adds eps to each weight before it divides by their sum. In float32, as the mass is.
    mass = mass[..., None] + x.shape[1] * module.eps
    means = (sums.to(mass.dtype) + module.eps * total) / mass
    means = unflatten(means.to(sums.dtype), 1, (heads, -1))
    values = torch.einsum("bhlc,hdc->blhd", means, unflatten(value.weight, 0, (heads, -1))).flatten(2)
    return values if value.bias is None else values + value.bias

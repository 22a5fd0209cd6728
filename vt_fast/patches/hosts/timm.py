"""timm: attention pooling with latent queries, that of CLIP's ResNets, and CaiT's class attention."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from vt_fast.nn.frozen import kept
from vt_fast.patches.absorbed import fits, pays, pool, rows_of, split_mask, with_bias_gradient
from vt_fast.patches.base import Patch, acts, own_forward, why_not_plain

_FEW = "as many queries as one head has channels: folding does not pay"


class AttentionPoolLatent(Patch):
    """The pooling head of SigLIP and others: latent queries, shared by the batch, look at all tokens."""

    hosts = ("timm.layers.attention_pool.AttentionPoolLatent",)
    members = "latent pos_embed q kv q_norm k_norm proj proj_drop norm mlp"
    note = "other masks than one for the pixels run its own forward"

    @staticmethod
    def why_not(module: Any) -> str | None:
        if not (type(module.q_norm) is type(module.k_norm) is nn.Identity):
            return "it normalises the keys"
        width = module.head_dim * module.num_heads
        if not pays(2**20, module.latent_len, width, width, width, module.num_heads):
            return _FEW
        reason = why_not_plain(module, nn.Linear, "kv")
        return reason or why_not_plain(module, (nn.Linear, nn.Identity), "q")

    @staticmethod
    def forward(self: Any, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        known = AttentionPoolLatent.why_not(self) is None and fits(x, self.kv.in_features)
        masks = split_mask(attn_mask, x) if known else None
        if masks is None:
            return own_forward(self, x, attn_mask)  # type: ignore[no-any-return]
        if self.pos_embed is not None:
            x = x + self.pos_embed.to(x.dtype)
        heads, bias = self.num_heads, self.kv.bias
        key, value = self.kv.weight.chunk(2)
        sources = (self.latent, self.kv.weight, *self.q.parameters())
        rows = kept(self, "rows", sources, lambda: rows_of(self.q(self.latent[0]), key, heads), heads)
        scale = self.head_dim**-0.5 if self.fused_attn else self.scale
        bias = None if bias is None else bias.chunk(2)[1]
        x = pool(x, rows, value, bias, heads, scale=scale, mask=masks[0], pixel_bias=masks[1])
        x = self.proj_drop(self.proj(x))
        if self.mlp is not None:
            x = x + self.mlp(self.norm(x))
        if self.pool == "token":
            return x[:, 0]
        return x.mean(1) if self.pool == "avg" else x


class AttentionPool2d(Patch):
    """The pooling head of CLIP's ResNets: the mean of the pixels looks at itself and at all pixels."""

    hosts = ("timm.layers.attention_pool2d.AttentionPool2d",)
    members = "cls_token q k v qkv drop proj pos_embed"

    @staticmethod
    def why_not(module: Any) -> str | None:
        if module.pool_type != "token":
            return "it returns the pixels, not one token"
        if module.qkv is not None:
            return why_not_plain(module, nn.Linear, "qkv")
        return why_not_plain(module, nn.Linear, "q", "k", "v")

    @staticmethod
    def forward(self: Any, x: Tensor, pre_logits: bool = False) -> Tensor:
        if x.dim() != 4 or AttentionPool2d.why_not(self) is not None:
            return own_forward(self, x, pre_logits)  # type: ignore[no-any-return]
        size = x.shape[2:]
        pixels = x.flatten(2).transpose(1, 2)
        first = pixels.mean(1, keepdim=True) if self.cls_token is None else self.cls_token
        resample = sys.modules[self._vt_fast_host.__module__].resample_abs_pos_embed  # type: ignore[attr-defined]
        position = resample(self.pos_embed.unsqueeze(0), size, old_size=self.feat_size, num_prefix_tokens=1)
        pixels = torch.cat([first.expand(x.shape[0], -1, -1), pixels], 1) + position
        if self.qkv is None:
            key, value, bias = self.k.weight, self.v.weight, self.v.bias
            query = with_bias_gradient(self.q(pixels[:, :1]), self.k.bias)
        else:
            first, key, value = self.qkv.weight.chunk(3)
            biases = (None, None) if self.qkv.bias is None else self.qkv.bias.chunk(3)[::2]
            query, bias = nn.functional.linear(pixels[:, :1], first, biases[0]), biases[1]
        rows = rows_of(query, key, self.num_heads)
        scale = self.head_dim**-0.5 if self.fused_attn else self.scale
        pooled = self.drop(pool(pixels, rows, value, bias, self.num_heads, scale=scale))
        return pooled[:, 0] if pre_logits else self.proj(pooled)[:, 0]  # type: ignore[no-any-return]


class RotAttentionPool2d(Patch):
    """The same with a rotary position embedding, which does not fold."""

    hosts = ("timm.layers.attention_pool2d.RotAttentionPool2d",)
    members = "cls_token q k v qkv drop proj pos_embed"

    @staticmethod
    def why_not(module: Any) -> str | None:
        return "it rotates the keys by their positions"

    @staticmethod
    def forward(self: Any, x: Tensor, pre_logits: bool = False) -> Tensor:
        return own_forward(self, x, pre_logits)  # type: ignore[no-any-return]


class ClassAttn(Patch):
    """CaiT's class attention: the first token looks at all tokens."""

    hosts = ("timm.models.cait.ClassAttn",)
    members = "q k v attn_drop proj proj_drop"
    note = "training with attention dropout runs its own forward"

    @staticmethod
    def why_not(module: Any) -> str | None:
        return why_not_plain(module, nn.Linear, "k", "v")

    @staticmethod
    def forward(self: Any, x: Tensor) -> Tensor:
        # The fused attention asks the module itself, the other one its dropout.
        dropout = acts(self.attn_drop, training=self.training)
        if dropout or ClassAttn.why_not(self) is not None or not fits(x, self.k.in_features):
            return own_forward(self, x)  # type: ignore[no-any-return]
        query = with_bias_gradient(self.q(x[:, :1]), self.k.bias)
        rows = rows_of(query, self.k.weight, self.num_heads)
        scale = (x.shape[2] // self.num_heads) ** -0.5 if self.fused_attn else self.scale
        pooled = pool(x, rows, self.v.weight, self.v.bias, self.num_heads, scale=scale)
        return self.proj_drop(self.proj(pooled))  # type: ignore[no-any-return]

"""timm: vision transformers read at their class token, whose last block is computed for that token alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vt_fast.patches.absorbed import normed, pool, rows_of
from vt_fast.patches.base import Patch, acts, full_name, has_hooks, own_forward, why_not_plain

_BLOCK = "timm.models.vision_transformer.Block"
_ATTENTION = "timm.layers.attention.Attention"
_NORMS = ("torch.nn.modules.normalization.LayerNorm", "timm.layers.norm.LayerNorm")
# What treats each token by itself.
_MLPS = tuple(f"timm.layers.mlp.{name}" for name in ("Mlp", "GluMlp", "SwiGLU"))
_OVERRIDES = {"forward_features", "forward_head", "pool"}


class VisionTransformer(Patch):
    """The class token looks at all tokens; the others of the last block are never computed."""

    hosts = ("timm.models.vision_transformer.VisionTransformer",)
    members = (
        "patch_embed cls_token reg_token pos_embed pos_drop patch_drop norm_pre blocks norm attn_pool "
        "fc_norm head_drop head"
    )
    note = (
        "its last block runs for the class token alone; masks, checkpointing, and training with dropout in "
        "that block run its own forward; forward_features and intermediates are as before"
    )

    @staticmethod
    def concerns(module: Any) -> bool:
        return bool(module.has_class_token)

    @staticmethod
    def why_not(module: Any) -> str | None:
        if module.attn_pool is not None or module.global_pool != "token":
            return f"it reads all tokens: global_pool is {module.global_pool!r}"
        if found := _OVERRIDES & module.__dict__.keys():
            return f"it has a {', '.join(sorted(found))} of its own"
        if reason := why_not_plain(module, nn.Sequential, "blocks"):
            return reason
        last = module.blocks[-1]
        if full_name(type(last)) != _BLOCK:
            return f"its last block is a {type(last).__name__}"
        for name, part, known in (
            ("its attention", last.attn, (_ATTENTION,)),
            ("its MLP", last.mlp, _MLPS),
            ("its norm1", last.norm1, _NORMS),
            ("its norm2", last.norm2, _NORMS),
            ("the norm", module.norm, (*_NORMS, "torch.nn.modules.linear.Identity")),
        ):
            if full_name(type(part)) not in known:
                return f"{name} is a {type(part).__name__}"
        attention = last.attn
        if not (type(attention.q_norm) is type(attention.k_norm) is type(attention.norm) is nn.Identity):
            return "its attention has norms"
        if attention.gate is not None:
            return "its attention has a gate"
        for part in last.modules():
            if not full_name(type(part)).startswith(("torch.nn.modules.", "timm.")):
                return f"its last block has a {type(part).__name__}, which may mix tokens"
        if any(has_hooks(part) for part in (*last.modules(), module.norm)):
            return "its last block or norm has hooks or another forward, which would see one token"
        return why_not_plain(attention, nn.Linear, "qkv") or why_not_plain(last, type(last.norm1), "norm1")

    @staticmethod
    def forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if (
            attn_mask is not None
            or is_causal
            or self.grad_checkpointing
            or VisionTransformer.why_not(self) is not None
            or _drops(self.blocks[-1])
        ):
            return own_forward(self, x, attn_mask, is_causal)  # type: ignore[no-any-return]
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.forward_head(self.norm(_first(last, x)))  # type: ignore[no-any-return]


def _drops(block: Any) -> bool:
    """Whether any dropout is on; the last blocks may be trained alone, in a model in eval mode."""
    if acts(block.attn.attn_drop, training=block.attn.training):  # as its fused attention asks
        return True
    return any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in block.modules())


def _first(block: Any, x: Tensor) -> Tensor:
    """What a block makes of the first token, (B, 1, C)."""
    attention, norm, first = block.attn, block.norm1, x[:, :1]
    heads, qkv = attention.num_heads, attention.qkv
    query, key, value = qkv.weight.chunk(3)
    query_bias, _, bias = (None, None, None) if qkv.bias is None else qkv.bias.chunk(3)
    rows = rows_of(F.linear(norm(first), query, query_bias), normed(key, norm), heads)
    scale = attention.head_dim**-0.5 if attention.fused_attn else attention.scale
    pooled = pool(x, rows, value, bias, heads, scale=scale, norm=norm)
    first = first + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(pooled))))
    return first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))  # type: ignore[no-any-return]

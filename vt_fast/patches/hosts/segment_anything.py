"""segment-anything: the two-way decoder, whose few tokens and image look at each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vt_fast.patches.base import Patch, own_forward
from vt_fast.patches.two_way import (
    BLOCK,
    MEMBERS,
    NOTE,
    image_to_tokens,
    tokens_to_image,
    why_not,
    why_not_block,
)

_MODULE = "segment_anything.modeling.transformer"


class Attention(Patch):
    """The last attention of the decoder, from the tokens to the image."""

    hosts = (f"{_MODULE}.Attention",)
    members = MEMBERS
    attribute = "final_attn_token_to_image"
    note = NOTE

    @staticmethod
    def why_not(module: Any) -> str | None:
        return why_not(module)

    @staticmethod
    def forward(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if why_not(self, q, k) is not None:
            return own_forward(self, q, k, v)  # type: ignore[no-any-return]
        return tokens_to_image(self, q, k, v)


class TwoWayAttentionBlock(Patch):
    """Self-attention of the tokens, then tokens to image, then image to tokens."""

    hosts = (f"{_MODULE}.TwoWayAttentionBlock",)
    members = f"{BLOCK} norm1 norm2 norm3 norm4"
    note = NOTE

    @staticmethod
    def why_not(module: Any) -> str | None:
        return why_not_block(module, Attention.hosts)

    @staticmethod
    def forward(
        self: Any, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        if why_not_block(self, Attention.hosts, queries, keys) is not None:
            return own_forward(self, queries, keys, query_pe, key_pe)  # type: ignore[no-any-return]
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        if self.skip_first_layer_pe:
            queries = self.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q=q, k=q, v=queries)
        queries = self.norm1(queries)
        k = keys + key_pe  # once for both directions
        queries = self.norm2(queries + tokens_to_image(to_image, queries + query_pe, k, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = image_to_tokens(to_tokens, k, queries + query_pe, queries, residual=keys)
        return queries, self.norm4(keys)

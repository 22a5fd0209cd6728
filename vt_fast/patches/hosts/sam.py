"""transformers: the two-way decoders of SAM, SAM-HQ, SAM 2 and the models that copied them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vt_fast.patches.base import Patch, own_forward, why_weights_are_returned
from vt_fast.patches.two_way import (
    BLOCK,
    MEMBERS,
    NOTE,
    image_to_tokens,
    tokens_to_image,
    why_not,
    why_not_block,
)

# The last five have the code of SAM 2.
_MODELS = {
    "sam": "Sam",
    "sam_hq": "SamHQ",
    "sam2": "Sam2",
    "sam2_video": "Sam2Video",
    "edgetam": "EdgeTam",
    "edgetam_video": "EdgeTamVideo",
    "sam3_tracker": "Sam3Tracker",
    "sam3_tracker_video": "Sam3TrackerVideo",
}


def _named(end: str) -> tuple[str, ...]:
    return tuple(
        f"transformers.models.{name}.modeling_{name}.{start}{end}" for name, start in _MODELS.items()
    )


class Attention(Patch):
    """The last attention of the decoder, from the tokens to the image."""

    hosts = _named("Attention")
    members = MEMBERS
    attribute = "final_attn_token_to_image"
    note = f"attention_similarity, and {NOTE}"

    @staticmethod
    def why_not(module: Any) -> str | None:
        return why_weights_are_returned(module.config) or why_not(module)

    @staticmethod
    def forward(
        self: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_similarity: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if attention_similarity is not None or Attention.why_not(self) or why_not(self, query, key):
            return own_forward(self, query, key, value, attention_similarity, **kwargs)  # type: ignore[no-any-return]
        found = tokens_to_image(self, *(each.flatten(0, 1) for each in (query, key, value)))
        return found.view(query.shape), None


class TwoWayAttentionBlock(Patch):
    """Self-attention of the tokens, then tokens to image, then image to tokens."""

    hosts = _named("TwoWayAttentionBlock")
    members = f"{BLOCK} layer_norm1 layer_norm2 layer_norm3 layer_norm4"
    note = f"attention_similarity, and {NOTE}"

    @staticmethod
    def why_not(module: Any) -> str | None:
        return why_not_block(module, Attention.hosts)

    @staticmethod
    def forward(
        self: Any,
        queries: Tensor,
        keys: Tensor,
        query_point_embedding: Tensor,
        key_point_embedding: Tensor,
        attention_similarity: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if attention_similarity is not None or why_not_block(self, Attention.hosts, queries, keys):
            return own_forward(  # type: ignore[no-any-return]
                self,
                queries,
                keys,
                query_point_embedding,
                key_point_embedding,
                attention_similarity,
                **kwargs,
            )
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        if self.skip_first_layer_pe:
            queries, _ = self.self_attn(query=queries, key=queries, value=queries)
        else:
            query = queries + query_point_embedding
            queries = queries + self.self_attn(query=query, key=query, value=queries)[0]
        queries = self.layer_norm1(queries)
        # Images and prompts are two dimensions of tokens and one of pixels.
        pixels = keys.flatten(0, 1)
        k = (keys + key_point_embedding).flatten(0, 1)  # once for both directions
        query = (queries + query_point_embedding).flatten(0, 1)
        queries = self.layer_norm2(queries + tokens_to_image(to_image, query, k, pixels).view(queries.shape))
        queries = self.layer_norm3(queries + self.mlp(queries))
        query = (queries + query_point_embedding).flatten(0, 1)
        # The third result is what hooks may record, so that the residual is not added by the op.
        spread = image_to_tokens(to_tokens, k, query, queries.flatten(0, 1), residual=None).view(keys.shape)
        return queries, self.layer_norm4(keys + spread), spread

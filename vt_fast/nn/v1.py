"""The tokenizers of the paper's first version: static filters, and dynamic ones from half of the tokens."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.layout import as_pixels, unflatten
from vt_fast.nn.base import REFERENCE, maps_like, pixel_softmax, refuse_pixel_shards
from vt_fast.nn.filters import FilterTokenizer
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.options import ModuleOptions, factory_of, spelled_out
from vt_fast.nn.position import PositionCode
from vt_fast.nn.tokenizer import Tokenizer


class StaticTokenizer(FilterTokenizer):
    """First version, first module: A = softmax_N(X W_A / sqrt(C)), T = A^T (X W_V), then a 1x1 to CT.

    A :class:`FilterTokenizer` whose value and token convolutions are always there.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        value_groups: groups of W_V.
        position: a position code, appended before the 1x1; the first version has a :class:`ConvPositionCode`.
        **options: `bias`, `backend`, `device`, `dtype`: see :class:`Tokenizer`.

    Example:
        >>> StaticTokenizer(64, 16, 128, value_groups=4)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 16, 128])
    """

    @spelled_out(Tokenizer.__init__, ModuleOptions)
    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        value_groups: int = 1,
        position: PositionCode | None = None,
        **options: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(
            channels,
            num_tokens,
            token_channels,
            scale=None,
            position=position,
            value_groups=value_groups,
            token_linear=True,
            **options,
        )


class DynamicTokenizer(Tokenizer):
    """First version, later modules: half of the tokens ask for new ones, the other half stay.

    T_in = [T_a | T_b], split at L / 2. Head h takes block h of the channels of the queries T_a W_Q, the
    keys X W_key and the values X W_V; its weights are softmax_N(keys queries^T / sqrt(C / num_heads)). The
    blocks side by side, through a 1x1 to CT, are L / 2 new tokens: T = [T_b | new].

    Folded, a block of channels that consists of whole heads and whole groups is one head of the op: there are
    gcd(num_heads, key_groups, value_groups) of them. Each attention head inside such a block gets rows of its
    own, which pool the whole block; its own channels are picked after the value convolution. A stack can fuse
    this tokenizer if there is one op head. The keys have no bias: the softmax would cancel it.

    The number of heads is that of the authors' code; the paper does not state it, and counts do not depend on
    it. A position code is that of the mean of the heads' attention, and is appended before the 1x1. With one,
    all heads share one op head, so that its table is pooled in the same pass.

    Args:
        channels: C of the feature map.
        num_tokens: L, even; of the incoming tokens too.
        token_channels: CT, of the incoming tokens too; by default `channels`.
        num_heads: attention heads; must divide C.
        query_groups: groups of W_Q.
        key_groups: groups of the key convolution C -> C.
        value_groups: groups of the value convolution C -> C; None for none.
        position: a position code.
        **options: `bias`, `backend`, `device`, `dtype`: see :class:`Tokenizer`.

    Raises:
        ValueError: L is odd, or heads or groups do not divide the widths.

    Example:
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 128)
        >>> DynamicTokenizer(64, 16, 128, num_heads=16, key_groups=4, value_groups=4)(x, tokens).shape
        torch.Size([2, 16, 128])
    """

    @spelled_out(Tokenizer.__init__, ModuleOptions)
    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        num_heads: int = 16,
        query_groups: int = 1,
        key_groups: int = 1,
        value_groups: int | None = 1,
        position: PositionCode | None = None,
        **options: Unpack[ModuleOptions],
    ) -> None:
        super().__init__(
            channels,
            num_tokens,
            token_channels,
            value_groups=value_groups,
            token_linear=True,
            position=position,
            **options,
        )
        factory, bias = factory_of(options), options.get("bias", True)
        checks.count("num_heads", num_heads)
        checks.divides("num_heads", num_heads, "channels", channels)
        if num_tokens % 2:
            raise ValueError(f"`num_tokens` must be even, got {num_tokens}")
        self.query = GroupedLinear(self.token_channels, channels, query_groups, bias=bias, **factory)
        self.key = GroupedLinear(channels, channels, key_groups, bias=False, **factory)
        self.num_heads = num_heads
        # Without a value convolution every channel is a group of its own.
        heads = math.gcd(num_heads, key_groups, channels if value_groups is None else value_groups)
        self.op_heads = heads if position is None else 1  # `tokenize` has extra values for one head only
        self.scale = math.sqrt(num_heads / channels)

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """Rows (B, op_heads * R, C / op_heads), R = attention heads per op head times L / 2."""
        keys: Tensor = self.key(self._rows(tokens), fold=(self.num_heads, self.op_heads))[0]
        return keys

    def _rows(self, tokens: Tensor | None) -> Tensor:
        asking = checks.tokens(tokens, self.token_channels, self.num_tokens)[:, : self.num_tokens // 2]
        rows: Tensor = self.query(asking) * self.scale
        return rows

    def _logits(self, pixels: Tensor, tokens: Tensor | None) -> Tensor:
        rows, keys = (
            unflatten(value, 2, (self.num_heads, -1)).transpose(1, 2)
            for value in (self._rows(tokens), self.key(pixels))
        )
        logits = rows @ keys.transpose(2, 3)  # (B, num_heads, L / 2, N)
        return unflatten(logits, 1, (self.op_heads, -1)).flatten(2, 3)

    def finish(self, pooled: Tensor, tokens: Tensor | None = None) -> Tensor:
        """From the result of `tokenize`, (B, R, C + P), to [T_b | new], (B, L, CT)."""
        tokens = checks.tokens(tokens, self.token_channels, self.num_tokens)
        half, inside = self.num_tokens // 2, self.num_heads // self.op_heads
        codes = None
        if self.position is not None:
            codes = unflatten(pooled[..., self.channels :], 1, (self.num_heads, half)).mean(1)
            pooled = pooled[..., : self.channels]
        if self.value is not None:
            pooled = self.value(pooled)
        # (B, head of the row, L / 2, op head, head of the channels, channels): equal heads are picked.
        parts = pooled.reshape(-1, inside, half, self.op_heads, inside, self.channels // self.num_heads)
        picked = parts.diagonal(dim1=1, dim2=4).permute(0, 1, 2, 4, 3).flatten(2)
        if codes is not None:
            picked = torch.cat((picked, codes), 2)
        return torch.cat((tokens[:, half:], picked if self.token is None else self.token(picked)), 1)

    def attention_maps(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """What each head of each new token looks at, computed for viewing; the module keeps nothing of it.

        Returns:
            (B, num_heads, L / 2, H, W), or (B, num_heads, L / 2, N) for a map (B, N, C).
        """
        self._check(x, tokens)
        refuse_pixel_shards(x, "where attention maps are wanted")
        if self.backend == REFERENCE:
            self._refuse_mask(mask)
            weights = self._reference_attention(x, tokens).transpose(2, 3)
        else:
            if self._why_key_not_folded() is None:
                blocks = unflatten(as_pixels(x), 2, (self.op_heads, -1))
                rows = unflatten(self.queries(tokens), 1, (self.op_heads, -1))
                logits = torch.einsum("bnhc,bhrc->bhrn", blocks, rows)
            else:
                logits = self._logits(as_pixels(x), tokens)
            weights = pixel_softmax(logits, mask).flatten(1, 2)
            weights = unflatten(weights, 1, (self.num_heads, -1))
        return maps_like(weights, x)

    def _check(self, x: Tensor, tokens: Tensor | None) -> None:
        super()._check(x, tokens)
        checks.tokens(tokens, self.token_channels, self.num_tokens, x=x)

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The attention (B, num_heads, N, L / 2) as the paper writes it."""
        from vt_fast.reference.v1 import dynamic_attention

        tokens = checks.tokens(tokens, self.token_channels, self.num_tokens)
        query, key = projection_of(self.query), projection_of(self.key)
        return dynamic_attention(as_pixels(x), tokens, query, key, num_heads=self.num_heads)

    def _reference(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        from vt_fast.reference.v1 import dynamic_tokenizer

        position = None if self.position is None else partial(self._code, size=checks.map_size(x))
        return dynamic_tokenizer(
            as_pixels(x),
            checks.tokens(tokens, self.token_channels, self.num_tokens),
            projection_of(self.query),
            projection_of(self.key),
            num_heads=self.num_heads,
            value=projection_of(self.value),
            position=position,
            token=projection_of(self.token),
        )

    def _code(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        code: Tensor = self.position(*size, attention=attention)  # type: ignore[misc]
        return code

    def extra_repr(self) -> str:
        """Widths, attention heads, heads of the op and backend, for printing."""
        return f"{super().extra_repr()}, num_heads={self.num_heads}"

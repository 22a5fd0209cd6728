"""The tokenizers of the paper's first version: static filters, and dynamic ones from half of the tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vt_fast.layout import as_pixels
from vt_fast.nn.base import REFERENCE, check_divides, check_tokens, maps_like
from vt_fast.nn.filters import FilterTokenizer
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.position import PositionCode
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.reference.v1 import dynamic_tokenizer


class StaticTokenizer(FilterTokenizer):
    """First version, first module: A = softmax_N(X W_A / sqrt(C)), T = A^T (X W_V), then a 1x1 to CT.

    A :class:`FilterTokenizer` whose value and token convolutions are always there.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        value_groups: groups of W_V.
        position: a position code, appended before the 1x1; the first version has a :class:`ConvPositionCode`.
        bias: whether the value and token convolutions have one.
        backend: see :class:`vt_fast.nn.Module`.

    Example:
        >>> StaticTokenizer(64, 16, 128, value_groups=4)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 16, 128])
    """

    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        value_groups: int = 1,
        position: PositionCode | None = None,
        bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            channels,
            num_tokens,
            token_channels,
            value_groups=value_groups,
            token_linear=True,
            position=position,
            bias=bias,
            backend=backend,
        )


class DynamicTokenizer(Tokenizer):
    """First version, later modules: half of the tokens ask for new ones, the other half stay.

    T_in = [T_a | T_b], split at L / 2. Head h takes block h of the channels of the queries T_a W_Q, the
    keys X W_key and the values X W_V; its weights are softmax_N(keys queries^T / sqrt(C / num_heads)). The
    blocks side by side, through a 1x1 to CT, are L / 2 new tokens: T = [T_b | new].

    Folded: a block of channels that whole heads and whole groups share is one head of the op,
    gcd(heads, key_groups, value_groups) of them. Each of the remaining heads / that many gets rows of its
    own, which pool the whole block, and its channels are picked after the value convolution. With one op
    head a stack can fuse this tokenizer; with more it runs on its own. The keys have no bias: the softmax
    would cancel it.

    There is no position code, by choice: the paper's counts have one on the first tokenizer alone.

    Args:
        channels: C of the feature map.
        num_tokens: L, even; of the incoming tokens too.
        token_channels: CT, of the incoming tokens too; by default `channels`.
        num_heads: must divide C.
        query_groups: groups of W_Q.
        key_groups: groups of the key convolution C -> C.
        value_groups: groups of the value convolution C -> C; None for none.
        bias: whether the query, value and token convolutions have one.
        backend: see :class:`vt_fast.nn.Module`.

    Raises:
        ValueError: L is odd, or heads or groups do not divide what they must.

    Example:
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 128)
        >>> DynamicTokenizer(64, 16, 128, num_heads=16, key_groups=4, value_groups=4)(x, tokens).shape
        torch.Size([2, 16, 128])
    """

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
        bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            channels,
            num_tokens,
            token_channels,
            value_groups=value_groups,
            token_linear=True,
            bias=bias,
            backend=backend,
        )
        check_divides("num_heads", num_heads, channels=channels)
        if num_tokens % 2:
            raise ValueError(f"`num_tokens` must be even, got {num_tokens}")
        self.query = GroupedLinear(self.token_channels, channels, query_groups, bias=bias)
        self.key = GroupedLinear(channels, channels, key_groups, bias=False)
        self.attention_heads = num_heads
        # Pixels that no value convolution mixes are as good as one group per channel.
        self.num_heads = math.gcd(num_heads, key_groups, channels if value_groups is None else value_groups)
        self.scale = math.sqrt(num_heads / channels)

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """Rows (B, num_heads * R, C / num_heads) for the op's heads, R = attention heads per op head times L / 2."""
        asking = check_tokens(tokens, self.token_channels, self.num_tokens)[:, : self.num_tokens // 2]
        rows = self.query(asking) * self.scale
        return self.key.fold(rows, self.attention_heads, self.num_heads).flatten(1, 3)

    def finish(self, pooled: Tensor, tokens: Tensor | None = None) -> Tensor:
        """From what `tokenize` pooled, (B, R, C), to [T_b | new], (B, L, CT)."""
        tokens = check_tokens(tokens, self.token_channels, self.num_tokens)
        half, extra = self.num_tokens // 2, self.attention_heads // self.num_heads
        if self.value is not None:
            pooled = self.value(pooled)
        # (B, sub-head of the row, L / 2, op head, sub-head of the channels, channels): the two must agree.
        parts = pooled.reshape(-1, extra, half, self.num_heads, extra, self.channels // self.attention_heads)
        picked = parts.diagonal(dim1=1, dim2=4).permute(0, 1, 2, 4, 3).flatten(2)
        return torch.cat((tokens[:, half:], picked if self.token is None else self.token(picked)), 1)

    def attention_maps(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What each head of each new token looks at, computed for viewing and kept nowhere.

        Returns:
            (B, attention heads, L / 2, H, W), or (.., N) for a map (B, N, C).
        """
        self._check(x, tokens)
        if self.backend == REFERENCE:
            keys = torch.unflatten(self.key(as_pixels(x)), 2, (self.attention_heads, -1))
            asking = check_tokens(tokens, self.token_channels, self.num_tokens)[:, : self.num_tokens // 2]
            rows = torch.unflatten(self.query(asking) * self.scale, 2, (self.attention_heads, -1)).transpose(
                1, 2
            )
        else:
            keys = torch.unflatten(as_pixels(x), 2, (self.num_heads, -1))
            rows = torch.unflatten(self.queries(tokens), 1, (self.num_heads, -1))
        weights = torch.einsum("bnhc,bhrc->bhrn", keys, rows).softmax(-1).flatten(1, 2)
        return maps_like(torch.unflatten(weights, 1, (self.attention_heads, -1)), x)

    def _check(self, x: Tensor, tokens: Tensor | None) -> None:
        super()._check(x, tokens)
        check_tokens(tokens, self.token_channels, self.num_tokens, x)

    def _reference(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return dynamic_tokenizer(
            as_pixels(x),
            check_tokens(tokens, self.token_channels, self.num_tokens),
            self.query.projection,
            self.key.projection,
            num_heads=self.attention_heads,
            value=projection_of(self.value),
            token=projection_of(self.token),
        )

    def extra_repr(self) -> str:
        """Widths, attention heads, heads of the op and backend, for printing."""
        return f"{super().extra_repr()}, attention_heads={self.attention_heads}"

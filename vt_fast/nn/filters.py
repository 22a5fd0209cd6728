"""The paper's own tokenizers: filter-based (eq. 1) for a first module, recurrent (eq. 2) for later ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vt_fast.layout import as_pixels
from vt_fast.nn.base import check_tokens
from vt_fast.nn.init import lecun_normal_
from vt_fast.nn.linear import GroupedLinear
from vt_fast.nn.position import PositionCode
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.reference.tokenizers import spatial_attention, token_filters


class FilterTokenizer(Tokenizer):
    """Eq. 1, the tokenizer of a first module: T = softmax_N(X W_A)^T X, one learned filter per token.

    There is no filter bias: the softmax over the pixels cancels whatever is added to all of them.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        scale: multiplies the logits. The paper has none; ours is 1 / sqrt(C) by default, with filters of unit
            deviation, so that the logits start at order 1 for features of order 1.
        value_groups, token_linear, position, bias, backend: see :class:`Tokenizer`.

    Attributes:
        filters: (L, C), W_A transposed.

    Example:
        >>> x = torch.randn(2, 64, 14, 14)
        >>> FilterTokenizer(64, num_tokens=16, token_channels=128)(x).shape
        torch.Size([2, 16, 128])
    """

    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        scale: float | None = None,
        value_groups: int | None = None,
        token_linear: bool | None = None,
        position: PositionCode | None = None,
        bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            channels,
            num_tokens,
            token_channels,
            value_groups=value_groups,
            token_linear=token_linear,
            position=position,
            bias=bias,
            backend=backend,
        )
        self.scale = 1 / math.sqrt(channels) if scale is None else scale
        self.filters = nn.Parameter(torch.empty(num_tokens, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filters from a unit normal distribution."""
        lecun_normal_(self.filters, 1)

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """The filters times the scale, (L, C); `tokens` are not used."""
        return self.filters * self.scale

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return spatial_attention(as_pixels(x), self.filters, scale=self.scale)


class RecurrentTokenizer(Tokenizer):
    """Eq. 2, the tokenizer of later modules: W_R = T_in W_{T->R}, T = softmax_N(X W_R^T)^T X.

    The tokens of the module before give one bank of filters per sample. With `key_groups` the pixels go
    through a 1x1 convolution before they meet the filters, here folded into the filters: W_R W_key^T.
    That convolution has no bias, which the softmax over the pixels would cancel.

    Args:
        channels: C of the feature map.
        num_tokens: L, of the incoming tokens too.
        token_channels: CT, of the incoming tokens too; by default `channels`.
        scale: multiplies the logits; by default 1 / sqrt(C), our choice as in :class:`FilterTokenizer`.
        query_groups: groups of W_{T->R}.
        key_groups: None for eq. 2; a number adds the key 1x1 convolution C -> C in so many groups.
        value_groups, token_linear, position, bias, backend: see :class:`Tokenizer`. `bias` adds one to
            W_{T->R} as well: a filter that does not depend on the tokens.

    Example:
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 128)
        >>> RecurrentTokenizer(64, 16, 128, key_groups=4)(x, tokens).shape
        torch.Size([2, 16, 128])
    """

    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        scale: float | None = None,
        query_groups: int = 1,
        key_groups: int | None = None,
        value_groups: int | None = None,
        token_linear: bool | None = None,
        position: PositionCode | None = None,
        bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            channels,
            num_tokens,
            token_channels,
            value_groups=value_groups,
            token_linear=token_linear,
            position=position,
            bias=bias,
            backend=backend,
        )
        self.scale = 1 / math.sqrt(channels) if scale is None else scale
        self.query = GroupedLinear(self.token_channels, channels, query_groups, bias=bias)
        self.key = None if key_groups is None else GroupedLinear(channels, channels, key_groups, bias=False)

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """(T_in W_{T->R}) W_key^T times the scale, one bank (B, L, C) per sample."""
        rows = self.query(check_tokens(tokens, self.token_channels, self.num_tokens)) * self.scale
        return rows if self.key is None else self.key.fold(rows).flatten(-4, -2)

    def _check(self, x: Tensor, tokens: Tensor | None) -> None:
        super()._check(x, tokens)
        check_tokens(tokens, self.token_channels, self.num_tokens, x)

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        tokens = check_tokens(tokens, self.token_channels, self.num_tokens)
        rows = as_pixels(x) if self.key is None else self.key(as_pixels(x))
        return spatial_attention(rows, token_filters(tokens, self.query.projection), scale=self.scale)

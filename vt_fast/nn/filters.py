"""The paper's own tokenizers: filter-based (eq. 1) for a first module, recurrent (eq. 2) for later ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.layout import as_pixels
from vt_fast.nn.frozen import kept
from vt_fast.nn.init import lecun_normal_
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.options import TokenizerOptions, factory_of, spelled_out
from vt_fast.nn.position import PositionCode
from vt_fast.nn.tokenizer import Tokenizer


class FilterTokenizer(Tokenizer):
    """Eq. 1, the tokenizer of a first module: T = softmax_N(X W_A)^T X, one learned filter per token.

    There is no filter bias: it would add a constant to all pixels of a token, which the softmax cancels.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        scale: multiplies the logits. The paper has none. By default 1 / sqrt(C), with filters of unit
            deviation, so that the logits start at order 1 for features of order 1.
        position: a position code.
        **options: `value_groups`, `token_linear`, `bias`, `backend`, `device`, `dtype`: see
            :class:`Tokenizer`.

    Attributes:
        filters: (L, C), W_A transposed.

    Example:
        >>> x = torch.randn(2, 64, 14, 14)
        >>> FilterTokenizer(64, num_tokens=16, token_channels=128)(x).shape
        torch.Size([2, 16, 128])
    """

    @spelled_out(Tokenizer.__init__, TokenizerOptions)
    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        scale: float | None = None,
        position: PositionCode | None = None,
        **options: Unpack[TokenizerOptions],
    ) -> None:
        super().__init__(channels, num_tokens, token_channels, position=position, **options)
        self.scale = checks.scale(scale, 1 / math.sqrt(channels))
        self.filters = nn.Parameter(torch.empty(num_tokens, channels, **factory_of(options)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filters from a unit normal distribution."""
        lecun_normal_(self.filters, 1)

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """The filters times the scale, (L, C); `tokens` are not used."""
        return kept(self, "queries", (self.filters,), lambda: self.filters * self.scale, self.scale)

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        from vt_fast.reference.tokenizers import spatial_attention

        return spatial_attention(as_pixels(x), self.filters, scale=self.scale)


class RecurrentTokenizer(Tokenizer):
    """Eq. 2, the tokenizer of later modules: W_R = T_in W_{T->R}, T = softmax_N(X W_R^T)^T X.

    The tokens of the module before give one bank of filters per sample. With `key_groups` the logits compare
    a 1x1 convolution of the pixels with the filters; it is folded into the filters: W_R W_key^T. It has no
    bias, which the softmax over the pixels would cancel.

    Args:
        channels: C of the feature map.
        num_tokens: L, of the incoming tokens too.
        token_channels: CT, of the incoming tokens too; by default `channels`.
        scale: multiplies the logits; by default 1 / sqrt(C), as in :class:`FilterTokenizer`.
        query_groups: groups of W_{T->R}.
        key_groups: None for eq. 2; a number adds the key 1x1 convolution C -> C in so many groups.
        position: a position code.
        **options: `value_groups`, `token_linear`, `bias`, `backend`, `device`, `dtype`: see
            :class:`Tokenizer`. `bias` also adds one to W_{T->R}: a filter that does not depend on the tokens.

    Example:
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 128)
        >>> RecurrentTokenizer(64, 16, 128, key_groups=4)(x, tokens).shape
        torch.Size([2, 16, 128])
    """

    @spelled_out(Tokenizer.__init__, TokenizerOptions)
    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        scale: float | None = None,
        query_groups: int = 1,
        key_groups: int | None = None,
        position: PositionCode | None = None,
        **options: Unpack[TokenizerOptions],
    ) -> None:
        super().__init__(channels, num_tokens, token_channels, position=position, **options)
        factory, bias = factory_of(options), options.get("bias", True)
        self.scale = checks.scale(scale, 1 / math.sqrt(channels))
        self.query = GroupedLinear(self.token_channels, channels, query_groups, bias=bias, **factory)
        self.key = (
            None
            if key_groups is None
            else GroupedLinear(channels, channels, key_groups, bias=False, **factory)
        )

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """(T_in W_{T->R}) W_key^T times the scale, one bank (B, L, C) per sample."""
        rows, key = self._rows(tokens), self._modules.get("key")
        return rows if key is None else key(rows, fold=(1, 1))[0]

    def _rows(self, tokens: Tensor | None) -> Tensor:
        rows: Tensor = self.query(checks.tokens(tokens, self.token_channels, self.num_tokens)) * self.scale
        return rows

    def _logits(self, pixels: Tensor, tokens: Tensor | None) -> Tensor:
        keys: Tensor = self.key(pixels)  # type: ignore[misc]
        return (self._rows(tokens) @ keys.transpose(1, 2)).unsqueeze(1)

    def _check(self, x: Tensor, tokens: Tensor | None) -> None:
        super()._check(x, tokens)
        checks.tokens(tokens, self.token_channels, self.num_tokens, x=x)

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        from vt_fast.reference.linear import linear
        from vt_fast.reference.tokenizers import spatial_attention, token_filters

        tokens = checks.tokens(tokens, self.token_channels, self.num_tokens)
        key, query = projection_of(self.key), projection_of(self.query)
        keys = as_pixels(x) if key is None else linear(as_pixels(x), key)
        return spatial_attention(keys, token_filters(tokens, query), scale=self.scale)

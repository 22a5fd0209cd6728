"""Pixels to tokens: the protocol of all tokenizers, and the filter-based and recurrent ones of the paper."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vt_fast import functional
from vt_fast.nn.base import (
    REFERENCE,
    Module,
    check_map,
    check_positive,
    check_tokens,
    map_size,
    maps_like,
    to_rows,
)
from vt_fast.nn.init import lecun_normal_
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.position import PositionCode
from vt_fast.reference.linear import linear
from vt_fast.reference.tokenizers import gather, spatial_attention, token_filters


class Tokenizer(Module):
    """Base class: a softmax over the pixels, folded so that the pixels are read once and never projected.

    tokens = finish(tokenize(x, queries(tokens_in), heads=heads, position=position_table(x))), where every
    linear map of the paper acts on the few tokens, not on the many pixels. A stack uses the three parts to
    fuse this pass with the projector before it. Subclasses give `queries` and `_reference_attention`.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        value_groups: None pools the pixels themselves; a number adds the value 1x1 convolution C -> C in so
            many groups. It is applied to the pooled tokens: each token's weights sum to 1.
        token_linear: whether a 1x1 convolution to CT follows; by default only where the widths differ.
        position: a position code, whose numbers are appended to the tokens before the 1x1 convolution.
        bias: whether the value and token convolutions have one.
        backend: see :class:`vt_fast.nn.Module`.
    """

    #: Channel blocks that the op pools with weights of their own; see `vt_fast.functional.tokenize`.
    heads: int = 1
    #: Whether incoming tokens are needed (recurrent and dynamic tokenizers).
    needs_tokens: bool = False

    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        value_groups: int | None = None,
        token_linear: bool | None = None,
        position: PositionCode | None = None,
        bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(backend)
        token_channels = channels if token_channels is None else token_channels
        check_positive(channels=channels, num_tokens=num_tokens, token_channels=token_channels)
        self.channels, self.num_tokens, self.token_channels = channels, num_tokens, token_channels
        pooled = channels + (0 if position is None else position.features)
        if token_linear is None:
            token_linear = pooled != token_channels
        if not token_linear and pooled != token_channels:
            raise ValueError(
                f"`token_channels` must be {pooled}, the channels pooled, where `token_linear` is False, "
                f"got {token_channels}"
            )
        self.value = (
            None if value_groups is None else GroupedLinear(channels, channels, value_groups, bias=bias)
        )
        self.position = position
        self.token = GroupedLinear(pooled, token_channels, bias=bias) if token_linear else None

    @property
    def unfusable(self) -> str | None:
        """Why a stack cannot fuse this tokenizer with the projector before it; None where it can."""
        return None if self.heads == 1 else f"pools {self.heads} heads"

    @property
    def fusable(self) -> bool:
        """Whether a stack can fuse this tokenizer with the projector before it."""
        return self.unfusable is None

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """The rows that pool the pixels, with every scale and projection folded in: (L, C) or (B, L, C)."""
        raise NotImplementedError(f"{type(self).__name__} has no queries that only depend on tokens")

    def position_table(self, x: Tensor) -> Tensor | None:
        """The position code as a table (N, P) for maps of the size of `x`, or None without one.

        Raises:
            ValueError: there is a position code and `x` is not (B, C, H, W).
        """
        if self.position is None:
            return None
        return self.position.table(*map_size(x))

    def finish(self, pooled: Tensor, tokens: Tensor | None = None) -> Tensor:
        """From what `tokenize` pooled, (B, L, C + P), to tokens (B, L, CT): value and token projections.

        The biases assume weights that sum to 1. Where a mask leaves no pixel of a sample, pooled rows are
        0 and the tokens are what the biases make of 0.
        """
        if self.value is not None:
            valued = self.value(pooled[..., : self.channels])
            rest = pooled[..., self.channels :]
            pooled = valued if self.position is None else torch.cat((valued, rest), -1)
        return pooled if self.token is None else self.token(pooled)

    def forward(self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, CT) of a feature map.

        Args:
            x: (B, N, C), or (B, C, H, W) in any memory format.
            tokens: tokens of the module before, (B, L, CT), for tokenizers that need them.
            mask: (B, N) or (B, H, W) bool, True where a pixel takes part; not with backend="reference".

        Raises:
            ValueError: `x` or `tokens` has a wrong shape, or a mask is given to the reference.
        """
        check_map(x, self.channels)
        if self.backend == REFERENCE:
            if mask is not None:
                raise ValueError('`mask` must be None with backend="reference", which has no masks')
            return self._reference(x, tokens)
        pooled = functional.tokenize(
            x,
            self._bank(x, tokens),
            heads=self.heads,
            mask=mask,
            position=self.position_table(x),
            backend=self.backend,
        )
        return self.finish(pooled, tokens)

    def attention_maps(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What each token looks at, computed for viewing and kept nowhere.

        Returns:
            (B, L, H, W), or (B, L, N) for a map (B, N, C): non-negative, each token's pixels sum to 1.
        """
        check_map(x, self.channels)
        if self.backend == REFERENCE:
            weights = self._reference_attention(x, tokens)
        else:
            weights = spatial_attention(to_rows(x), self._bank(x, tokens))
        return maps_like(weights.transpose(1, 2), x)

    def _bank(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The queries, for tokenizers whose queries may depend on the map too."""
        return self.queries(tokens)

    def _reference(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The tokens as the paper writes them, with every projection on the pixels."""
        attention = self._reference_attention(x, tokens)
        pooled = gather(attention, to_rows(x), value=projection_of(self.value))
        if self.position is not None:
            pooled = torch.cat((pooled, self.position.code(attention, map_size(x))), -1)
        return pooled if self.token is None else linear(pooled, self.token.projection)

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The attention (B, N, L) as the paper writes it."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Widths, heads and backend, for printing."""
        heads = f", heads={self.heads}" if self.heads > 1 else ""
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        sizes = f"num_tokens={self.num_tokens}, token_channels={self.token_channels}"
        return f"{self.channels}, {sizes}{heads}{backend}"


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
        return spatial_attention(to_rows(x), self.filters, scale=self.scale)


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

    needs_tokens = True

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

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        tokens = check_tokens(tokens, self.token_channels, self.num_tokens)
        rows = to_rows(x) if self.key is None else self.key(to_rows(x))
        return spatial_attention(rows, token_filters(tokens, self.query.projection), scale=self.scale)

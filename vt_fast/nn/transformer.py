"""Tokens to tokens: the transformer of both versions of the paper, and the two relations it is held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vt_fast.nn.base import Module, check_divides, check_positive, check_tokens
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.reference.transformer import (
    graph_convolution,
    no_relation,
    token_attention,
    transformer,
    transformer_v1,
)

# relu has no gradient at 0: a weight behind it that starts at 0 never moves, so these start small instead.
_SMALL = 0.1


class TokenRelation(Module):
    """Base class of what happens between tokens: (B, L, CT) -> (B, L, CT).

    There are few tokens and nothing to fold: every backend computes `vt_fast.reference`'s formula.

    Args:
        token_channels: CT.
        norm: apply a LayerNorm to the incoming tokens, whose scale follows the map's. What the residual
            branches are added to is then the normalised tokens. The paper's equations have none.
        backend: see :class:`vt_fast.nn.Module`; makes no difference here.
    """

    def __init__(self, token_channels: int, *, norm: bool = False, backend: str | None = None) -> None:
        super().__init__(backend)
        check_positive(token_channels=token_channels)
        self.token_channels = token_channels
        self.norm = nn.LayerNorm(token_channels) if norm else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Relate the tokens: (B, L, CT) -> (B, L, CT).

        Raises:
            ValueError: `tokens` has a wrong shape.
        """
        return self._relate(self._enter(tokens))

    def _enter(self, tokens: Tensor) -> Tensor:
        tokens = check_tokens(tokens, self.token_channels)
        return tokens if self.norm is None else self.norm(tokens)

    def _relate(self, tokens: Tensor) -> Tensor:
        """The relation of tokens that are checked and normalised."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Width, for printing."""
        return f"{self.token_channels}"


class TokenTransformer(TokenRelation):
    """Eqs. 3 and 4: T' = T + softmax_L((T K)(T Q)^T) T V; T_out = T' + relu(T' F1) F2.

    As in the paper, row i of the attention is token i's *key* against all queries. The queries have no
    bias: the softmax would cancel it. At initialisation V and F2 are zero, so that the output is the
    input.

    Args:
        token_channels: CT.
        width: channels of keys and queries; by default CT // 2.
        value: True for a value projection V: CT -> CT, as the paper's counts have it; False for eq. 3 as it
            is printed, whose branch is not zero at initialisation.
        groups: groups of the key, query and value projections.
        hidden: width between F1 and F2 (version 2); by default CT.
        heads: attention heads, over blocks of `width` and of the values.
        scale: multiplies the logits; by default 1 / sqrt(width / heads), our choice.
        version: 2 for eqs. 3 and 4; 1 for the first version, whose second half is one linear layer, T' +
            T' F.
        bias: whether the projections other than Q have one.
        norm, backend: see :class:`TokenRelation`.

    Raises:
        ValueError: groups or heads do not divide the widths, or the version is unknown.

    Example:
        >>> tokens = torch.randn(2, 16, 128)
        >>> torch.equal(TokenTransformer(128, heads=4)(tokens), tokens)  # at initialisation
        True
    """

    def __init__(
        self,
        token_channels: int,
        *,
        width: int | None = None,
        value: bool = True,
        groups: int = 1,
        hidden: int | None = None,
        heads: int = 1,
        scale: float | None = None,
        norm: bool = False,
        version: int = 2,
        bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(token_channels, norm=norm, backend=backend)
        if version not in (1, 2):
            raise ValueError(f"`version` must be 1 or 2, got {version!r}")
        if version == 1 and not (value and hidden is None):
            raise ValueError(
                "`value` must be True and `hidden` None in version 1, which has V and one linear layer"
            )
        width = max(token_channels // 2, 1) if width is None else width
        check_divides("heads", heads, width=width, token_channels=token_channels)
        self.heads, self.version = heads, version
        self.scale = math.sqrt(heads / width) if scale is None else scale
        self.key = GroupedLinear(token_channels, width, groups, bias=bias)
        self.query = GroupedLinear(token_channels, width, groups, bias=False)
        self.value = (
            GroupedLinear(token_channels, token_channels, groups, bias=bias, gain=0) if value else None
        )
        if version == 2:
            hidden = token_channels if hidden is None else hidden
            self.first = GroupedLinear(token_channels, hidden, bias=bias)
            self.second = GroupedLinear(hidden, token_channels, bias=bias, gain=0)
        else:
            self.linear = GroupedLinear(token_channels, token_channels, bias=bias, gain=0)

    def _relate(self, tokens: Tensor) -> Tensor:
        key, query = self.key.projection, self.query.projection
        if self.value is not None and self.version == 1:
            return transformer_v1(
                tokens,
                key,
                query,
                self.value.projection,
                self.linear.projection,
                heads=self.heads,
                scale=self.scale,
            )
        return transformer(
            tokens,
            key,
            query,
            self.first.projection,
            self.second.projection,
            value=projection_of(self.value),
            heads=self.heads,
            scale=self.scale,
        )

    def attention_maps(self, tokens: Tensor) -> Tensor:
        """What each token takes from each other one: (B, heads, L, L), rows sum to 1."""
        return token_attention(
            self._enter(tokens),
            self.key.projection,
            self.query.projection,
            heads=self.heads,
            scale=self.scale,
        )

    def extra_repr(self) -> str:
        """Width, heads and version, for printing."""
        heads = f", heads={self.heads}" if self.heads > 1 else ""
        return f"{self.token_channels}{heads}{', version=1' if self.version == 1 else ''}"


class GraphConv(TokenRelation):
    """The paper's GraphConv relation: a learned L x L mix of the tokens, then one feed-forward layer.

    The mix starts at zero, so that the layer starts as :class:`TokenFeedForward`.

    Args:
        num_tokens: L.
        token_channels: CT.
        groups: groups of the feed-forward layer.
        bias: whether the feed-forward layer has one.
        norm, backend: see :class:`TokenRelation`.

    Attributes:
        adjacency: (L, L).

    Example:
        >>> GraphConv(16, 128)(torch.randn(2, 16, 128)).shape
        torch.Size([2, 16, 128])
    """

    def __init__(
        self,
        num_tokens: int,
        token_channels: int,
        *,
        groups: int = 1,
        bias: bool = True,
        norm: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(token_channels, norm=norm, backend=backend)
        check_positive(num_tokens=num_tokens)
        self.num_tokens = num_tokens
        self.adjacency = nn.Parameter(torch.zeros(num_tokens, num_tokens))
        self.linear = GroupedLinear(token_channels, token_channels, groups, bias=bias, gain=_SMALL)

    def _relate(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.token_channels, self.num_tokens)
        return graph_convolution(tokens, self.adjacency, self.linear.projection)

    def extra_repr(self) -> str:
        """Tokens and width, for printing."""
        return f"{self.num_tokens}, {self.token_channels}"


class TokenFeedForward(TokenRelation):
    """The paper's relation "None": one feed-forward layer on each token alone, T + relu(T F).

    Args:
        token_channels: CT.
        groups: groups of F.
        bias: whether F has one.
        norm, backend: see :class:`TokenRelation`.

    Example:
        >>> TokenFeedForward(128)(torch.randn(2, 16, 128)).shape
        torch.Size([2, 16, 128])
    """

    def __init__(
        self,
        token_channels: int,
        *,
        groups: int = 1,
        bias: bool = True,
        norm: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(token_channels, norm=norm, backend=backend)
        self.linear = GroupedLinear(token_channels, token_channels, groups, bias=bias, gain=_SMALL)

    def _relate(self, tokens: Tensor) -> Tensor:
        return no_relation(tokens, self.linear.projection)

"""Tokens to tokens: what all relations share, and the two that the paper holds its transformer against."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vt_fast.nn.base import Module, check_positive, check_tokens
from vt_fast.nn.linear import GroupedLinear
from vt_fast.nn.norm import token_norm
from vt_fast.reference.transformer import graph_convolution, no_relation

# relu has no gradient at 0: a weight behind it that starts at 0 never moves, so these start small instead.
_SMALL = 0.1


class TokenRelation(Module, ABC):
    """Base class of what happens between tokens: (B, L, CT) -> (B, L, CT).

    There are few tokens and nothing to fold: every backend computes `vt_fast.reference`'s formula.

    Args:
        token_channels: CT.
        norm: what normalises the incoming tokens, whose scale follows the map's: "batch", "layer" (or True)
            or False for nothing, as in the paper's equations; see :func:`vt_fast.nn.norm.token_norm`. What
            the residual branches are added to is then the normalised tokens.
        backend: see :class:`vt_fast.nn.Module`; makes no difference here.
    """

    def __init__(self, token_channels: int, *, norm: bool | str = False, backend: str | None = None) -> None:
        super().__init__(backend)
        check_positive(token_channels=token_channels)
        self.token_channels = token_channels
        self.norm = token_norm(norm, token_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Relate the tokens: (B, L, CT) -> (B, L, CT).

        Raises:
            ValueError: `tokens` has a wrong shape.
        """
        return self._relate(self._enter(tokens))

    def _enter(self, tokens: Tensor) -> Tensor:
        tokens = check_tokens(tokens, self.token_channels)
        if self.norm is None:
            return tokens
        # As rows: a BatchNorm would take the second of three dimensions for the channels.
        normalised: Tensor = self.norm(tokens.flatten(0, 1))
        return normalised.reshape(tokens.shape)

    @abstractmethod
    def _relate(self, tokens: Tensor) -> Tensor:
        """The relation of tokens that are checked and normalised."""

    def extra_repr(self) -> str:
        """Width, for printing."""
        return f"{self.token_channels}"


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
        norm: bool | str = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(token_channels, norm=norm, backend=backend)
        check_positive(num_tokens=num_tokens)
        self.num_tokens = num_tokens
        self.adjacency = nn.Parameter(torch.empty(num_tokens, num_tokens))
        self.linear = GroupedLinear(token_channels, token_channels, groups, bias=bias, gain=_SMALL)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the adjacency; the feed-forward layer has a `reset_parameters` of its own."""
        nn.init.zeros_(self.adjacency)

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
        norm: bool | str = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(token_channels, norm=norm, backend=backend)
        self.linear = GroupedLinear(token_channels, token_channels, groups, bias=bias, gain=_SMALL)

    def _relate(self, tokens: Tensor) -> Tensor:
        return no_relation(tokens, self.linear.projection)

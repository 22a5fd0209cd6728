"""Tokens to tokens: what all relations share, and the two that the paper compares its transformer with."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.nn.base import REFERENCE, BackendModule
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.norm import make_token_norm
from vt_fast.nn.options import FeedForwardOptions, RelationOptions, TokenNorm, factory_of, spelled_out

# relu has no gradient at 0: a weight before it that started at 0 would never move, so these start small
# instead.
_SMALL = 0.1


class TokenRelation(BackendModule, ABC):
    """Base class of what happens between tokens: (B, L, CT) -> (B, L, CT).

    There are few tokens and nothing to fold: all backends but "reference" compute the same in plain PyTorch.

    Args:
        token_channels: CT.
        token_norm: norm of the incoming tokens, whose scale follows the map's: "batch", "layer" or None, as
            in the paper's equations; see :func:`vt_fast.nn.norm.make_token_norm`. The residual branches are
            added to the normalised tokens.
        backend: see :func:`vt_fast.nn.set_backend`.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        token_channels: int,
        *,
        token_norm: TokenNorm | None = None,
        backend: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(backend)
        checks.count("token_channels", token_channels)
        self.token_channels = token_channels
        self.token_norm = make_token_norm(token_norm, token_channels, device=device, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Relate the tokens: (B, L, CT) -> (B, L, CT).

        Raises:
            ValueError: `tokens` has a wrong shape.
        """
        tokens = self._normalise(tokens)
        return self._reference(tokens) if self.backend == REFERENCE else self._relate(tokens)

    def _normalise(self, tokens: Tensor) -> Tensor:
        tokens = checks.tokens(tokens, self.token_channels)
        token_norm = self._modules.get("token_norm")
        if token_norm is None:
            return tokens
        if isinstance(token_norm, nn.LayerNorm):
            of_each: Tensor = token_norm(tokens)
            return of_each
        # As rows: a BatchNorm would take the second of three dimensions for the channels.
        normalised: Tensor = token_norm(tokens.flatten(0, 1))
        return normalised.reshape(tokens.shape)

    @abstractmethod
    def _relate(self, tokens: Tensor) -> Tensor:
        """The relation of checked and normalised tokens."""

    @abstractmethod
    def _reference(self, tokens: Tensor) -> Tensor:
        """The same by `vt_fast.reference`."""

    def extra_repr(self) -> str:
        """Width and backend, for printing."""
        return f"{self.token_channels}{self._shown_backend()}"


class TokenFeedForward(TokenRelation):
    """The paper's relation "None": one feed-forward layer on each token alone, T + relu(T F).

    Args:
        token_channels: CT.
        groups: groups of F.
        bias: whether F has one.
        **options: `token_norm`, `backend`, `device`, `dtype`: see :class:`TokenRelation`.

    Example:
        >>> TokenFeedForward(128)(torch.randn(2, 16, 128)).shape
        torch.Size([2, 16, 128])
    """

    @spelled_out(TokenRelation.__init__, RelationOptions)
    def __init__(
        self, token_channels: int, *, groups: int = 1, bias: bool = True, **options: Unpack[RelationOptions]
    ) -> None:
        super().__init__(token_channels, **options)
        self.linear = GroupedLinear(
            token_channels, token_channels, groups, bias=bias, gain=_SMALL, **factory_of(options)
        )

    def _relate(self, tokens: Tensor) -> Tensor:
        return tokens + F.relu(self.linear(tokens))

    def _reference(self, tokens: Tensor) -> Tensor:
        from vt_fast.reference.transformer import no_relation

        return no_relation(tokens, projection_of(self.linear))


class GraphConv(TokenFeedForward):
    """The paper's GraphConv relation: a learned L x L mix of the tokens, then one feed-forward layer.

    T' = T + A T; T_out = T' + relu(T' F). The mix starts at zero, so that the layer starts as
    :class:`TokenFeedForward`.

    Args:
        num_tokens: L.
        token_channels: CT.
        **options: `groups`, `bias`, `token_norm`, `backend`, `device`, `dtype`: see
            :class:`TokenFeedForward`.

    Attributes:
        adjacency: A (L, L).

    Example:
        >>> GraphConv(16, 128)(torch.randn(2, 16, 128)).shape
        torch.Size([2, 16, 128])
    """

    @spelled_out(TokenFeedForward.__init__, FeedForwardOptions)
    def __init__(self, num_tokens: int, token_channels: int, **options: Unpack[FeedForwardOptions]) -> None:
        super().__init__(token_channels, **options)
        checks.count("num_tokens", num_tokens)
        self.num_tokens = num_tokens
        self.adjacency = nn.Parameter(torch.empty(num_tokens, num_tokens, **factory_of(options)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the adjacency; the feed-forward layer has a `reset_parameters` of its own."""
        nn.init.zeros_(self.adjacency)

    def _relate(self, tokens: Tensor) -> Tensor:
        checks.tokens(tokens, self.token_channels, self.num_tokens)
        return super()._relate(tokens + self.adjacency @ tokens)

    def _reference(self, tokens: Tensor) -> Tensor:
        from vt_fast.reference.transformer import graph_convolution

        checks.tokens(tokens, self.token_channels, self.num_tokens)
        return graph_convolution(tokens, self.adjacency, projection_of(self.linear))

    def extra_repr(self) -> str:
        """Tokens, width and backend, for printing."""
        return f"num_tokens={self.num_tokens}, token_channels={self.token_channels}{self._shown_backend()}"

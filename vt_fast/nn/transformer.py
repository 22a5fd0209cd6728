"""The token transformer of both versions of the paper."""

from __future__ import annotations

import math

from torch import Tensor

from vt_fast.nn.base import check_divides
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.relations import TokenRelation
from vt_fast.reference.transformer import token_attention, transformer, transformer_v1


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
        num_heads: attention heads, over blocks of `width` and of the values.
        scale: multiplies the logits; by default 1 / sqrt(width / num_heads), our choice.
        version: 2 for eqs. 3 and 4; 1 for the first version, whose second half is one linear layer, T' +
            T' F.
        bias: whether the projections other than Q have one.
        norm, backend: see :class:`TokenRelation`.

    Raises:
        ValueError: groups or heads do not divide the widths, or the version is unknown.

    Example:
        >>> import torch
        >>> tokens = torch.randn(2, 16, 128)
        >>> torch.equal(TokenTransformer(128, num_heads=4)(tokens), tokens)  # at initialisation
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
        num_heads: int = 1,
        scale: float | None = None,
        norm: bool | str = False,
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
        check_divides("num_heads", num_heads, width=width, token_channels=token_channels)
        self.num_heads, self.version = num_heads, version
        self.scale = math.sqrt(num_heads / width) if scale is None else scale
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
                num_heads=self.num_heads,
                scale=self.scale,
            )
        return transformer(
            tokens,
            key,
            query,
            self.first.projection,
            self.second.projection,
            value=projection_of(self.value),
            num_heads=self.num_heads,
            scale=self.scale,
        )

    def attention_maps(self, tokens: Tensor) -> Tensor:
        """What each token takes from each other one: (B, heads, L, L), rows sum to 1."""
        return token_attention(
            self._enter(tokens),
            self.key.projection,
            self.query.projection,
            num_heads=self.num_heads,
            scale=self.scale,
        )

    def extra_repr(self) -> str:
        """Width, heads and version, for printing."""
        num_heads = f", num_heads={self.num_heads}" if self.num_heads > 1 else ""
        return f"{self.token_channels}{num_heads}{', version=1' if self.version == 1 else ''}"

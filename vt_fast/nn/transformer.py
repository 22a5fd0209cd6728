"""The token transformer of both versions of the paper, and of a third reading."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.layout import unflatten
from vt_fast.nn.base import REFERENCE
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.options import RelationOptions, Variant, factory_of, spelled_out
from vt_fast.nn.relations import TokenRelation

VARIANTS: tuple[Variant, ...] = get_args(Variant)


class TokenTransformer(TokenRelation):
    """Eqs. 3 and 4: T' = T + softmax_L((T K)(T Q)^T) T V; T_out = T' + relu(T' F1) F2.

    As in the paper, row i of the attention is token i's *key* against all queries. The queries have no
    bias: the softmax would cancel it. At initialisation V and F2 are zero, so that the output is the
    input.

    Args:
        token_channels: CT.
        width: channels of keys and queries; by default CT // 2.
        value: True for a value projection V: CT -> CT, as in the paper's counts; False for eq. 3 as it is
            printed, whose branch is not zero at initialisation.
        groups: groups of the key, query and value projections.
        hidden: width between F1 and F2 (variant "v2"); by default CT.
        num_heads: attention heads, over blocks of `width` and of the values. The paper does not state their
            number; the authors' code has 16, and counts do not depend on it.
        scale: multiplies the logits; by default 1 / sqrt(width / num_heads); the paper has none.
        variant: "v2" for eqs. 3 and 4; "v1" for the first version, whose second half is one linear layer, T'
            + T' F; "scaled" for no second half and a learned scale s of the attention's result, T +
            softmax(..) T V s, as TU Berlin's description of the paper has it. What shape s has there is not
            known: here it has a number per channel, and starts at 1.
        bias: whether the projections other than Q have one.
        **options: `token_norm`, `backend`, `device`, `dtype`: see :class:`TokenRelation`.

    Raises:
        ValueError: groups or heads do not divide the widths, or the variant is unknown.

    Example:
        >>> tokens = torch.randn(2, 16, 128)
        >>> torch.equal(TokenTransformer(128, num_heads=4)(tokens), tokens)  # at initialisation
        True
    """

    @spelled_out(TokenRelation.__init__, RelationOptions)
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
        variant: Variant = "v2",
        bias: bool = True,
        **options: Unpack[RelationOptions],
    ) -> None:
        super().__init__(token_channels, **options)
        checks.choice("variant", variant, VARIANTS)
        checks.flag("value", value)
        if variant != "v2" and not (value and hidden is None):
            has = "V and one linear layer" if variant == "v1" else "V and no feed-forward layer"
            raise ValueError(
                f'`value` must be True and `hidden` None in variant "{variant}", which has {has}'
            )
        width = max(token_channels // 2, 1) if width is None else width
        checks.counts(width=width, num_heads=num_heads)
        checks.divides("num_heads", num_heads, "width", width)
        checks.divides("num_heads", num_heads, "token_channels", token_channels)
        factory = factory_of(options)
        self.num_heads, self.variant = num_heads, variant
        self.scale = checks.scale(scale, math.sqrt(num_heads / width))
        self.key = GroupedLinear(token_channels, width, groups, bias=bias, **factory)
        self.query = GroupedLinear(token_channels, width, groups, bias=False, **factory)
        self.value = (
            GroupedLinear(token_channels, token_channels, groups, bias=bias, gain=0, **factory)
            if value
            else None
        )
        if variant == "v2":
            hidden = token_channels if hidden is None else hidden
            self.first = GroupedLinear(token_channels, hidden, bias=bias, **factory)
            self.second = GroupedLinear(hidden, token_channels, bias=bias, gain=0, **factory)
        elif variant == "scaled":
            self.gain = nn.Parameter(torch.empty(token_channels, **factory))
            self.reset_parameters()
        else:
            self.linear = GroupedLinear(token_channels, token_channels, bias=bias, gain=0, **factory)

    def reset_parameters(self) -> None:
        """Set the scale of variant "scaled" to 1; the projections have a `reset_parameters` of their own."""
        if self.variant == "scaled":
            nn.init.ones_(self.gain)

    def attention_maps(self, tokens: Tensor) -> Tensor:
        """What each token takes from each other one: (B, num_heads, L, L), rows sum to 1."""
        tokens = self._normalise(tokens)
        if self.backend != REFERENCE:
            return self._attention(tokens)
        from vt_fast.reference.transformer import token_attention

        key, query = projection_of(self.key), projection_of(self.query)
        return token_attention(tokens, key, query, num_heads=self.num_heads, scale=self.scale)

    def _attention(self, tokens: Tensor) -> Tensor:
        keys, queries = self._heads(self.key(tokens)), self._heads(self.query(tokens))
        return torch.softmax(self.scale * (keys @ queries.transpose(-2, -1)), -1)

    def _heads(self, rows: Tensor) -> Tensor:
        """(B, L, C) as (B, num_heads, L, C / num_heads)."""
        if self.num_heads == 1:
            return rows.unsqueeze(1)
        return unflatten(rows, 2, (self.num_heads, -1)).transpose(1, 2)

    def _relate(self, tokens: Tensor) -> Tensor:
        attention = self._attention(tokens)
        value = self._modules.get("value")
        values = self._heads(tokens if value is None else value(tokens))
        mixed = attention @ values
        joined = mixed.squeeze(1) if self.num_heads == 1 else mixed.transpose(1, 2).flatten(2)
        if self.variant == "scaled":
            return tokens + self.gain * joined
        tokens = tokens + joined
        v1 = self.variant == "v1"
        change: Tensor = self.linear(tokens) if v1 else self.second(F.relu(self.first(tokens)))
        return tokens + change

    def _reference(self, tokens: Tensor) -> Tensor:
        from vt_fast.reference.transformer import scaled_attention, transformer, transformer_v1

        key, query, value = projection_of(self.key), projection_of(self.query), projection_of(self.value)
        numbers: dict[str, Any] = {"num_heads": self.num_heads, "scale": self.scale}
        if value is not None and self.variant == "v1":
            return transformer_v1(tokens, key, query, value, projection_of(self.linear), **numbers)
        if value is not None and self.variant == "scaled":
            return scaled_attention(tokens, key, query, value, self.gain, **numbers)
        first, second = projection_of(self.first), projection_of(self.second)
        return transformer(tokens, key, query, first, second, value=value, **numbers)

    def extra_repr(self) -> str:
        """Width, heads, variant and backend, for printing."""
        num_heads = f", num_heads={self.num_heads}" if self.num_heads > 1 else ""
        variant = f", variant={self.variant!r}" if self.variant != "v2" else ""
        return f"{self.token_channels}{num_heads}{variant}{self._shown_backend()}"

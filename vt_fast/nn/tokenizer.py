"""Pixels to tokens: what all tokenizers share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.types import Device

from vt_fast import checks, functional
from vt_fast.layout import as_pixels, shards_pixels, unflatten
from vt_fast.nn.base import (
    REFERENCE,
    BackendModule,
    FactoredMap,
    PendingMap,
    check_map,
    maps_like,
    pixel_softmax,
    refuse_pixel_shards,
)
from vt_fast.nn.frozen import kept
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.members import refuse_opacus, why_not_fused
from vt_fast.nn.options import Factory
from vt_fast.nn.position import ConvPositionCode, LinearPositionCode, PositionCode


class Tokenizer(BackendModule):
    """Base class: a softmax over the pixels, folded so that the pixels are read once and never projected.

    tokens = finish(tokenize(x, queries(tokens_in), num_heads=op_heads, extra_values=position_table(x))):
    every linear map of the paper acts on the few tokens, not on the many pixels. A stack uses the three parts
    to fuse this pass with the projector before it. Subclasses define `queries` and `_reference_attention`.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        value_groups: None pools the pixels themselves; a number adds the value 1x1 convolution C -> C in so
            many groups. It is applied to the pooled tokens: each token's weights sum to 1.
        token_linear: whether a 1x1 convolution to CT follows; by default only where the widths differ.
        position: a position code, appended to the tokens before the 1x1 convolution.
        bias: whether the value and token convolutions have one.
        backend: see :func:`vt_fast.nn.set_backend`.
        device, dtype: of the parameters. A position code keeps its own.
    """

    #: Channel blocks that the op pools with weights of their own: its `num_heads`.
    op_heads: int = 1

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
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(backend)
        factory: Factory = {"device": device, "dtype": dtype}
        token_channels = channels if token_channels is None else token_channels
        checks.counts(channels=channels, num_tokens=num_tokens, token_channels=token_channels)
        checks.flag("token_linear", token_linear, optional=True)
        checks.flag("bias", bias)
        if position is not None and not isinstance(position, PositionCode):
            raise TypeError(f"`position` must be None or a PositionCode, got {type(position).__name__}")
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
            None
            if value_groups is None
            else GroupedLinear(channels, channels, value_groups, bias=bias, **factory)
        )
        self.position = position
        self.token = GroupedLinear(pooled, token_channels, bias=bias, **factory) if token_linear else None

    def why_not_fusable(self) -> str | None:
        """Why a stack cannot fuse this tokenizer with the projector before it; None where it can.

        Then `x` may be a map that the projector has not computed.
        """
        if self.op_heads > 1:
            return f"pools {self.op_heads} heads"
        reason = self._why_key_not_folded()
        return None if reason is None else f"has a key projection that runs on its own: it {reason}"

    def _why_key_not_folded(self) -> str | None:
        """Why the 1x1 convolution that the queries are compared with runs on the pixels."""
        key = self._modules.get("key")
        return None if key is None else why_not_fused(key, GroupedLinear)

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """The rows that pool the pixels, with every scale and projection folded in: (L, C) or (B, L, C)."""
        raise NotImplementedError(f"{type(self).__name__} has no queries that only depend on tokens")

    def position_table(self, x: Tensor) -> Tensor | None:
        """The position code as a table (N, P) for maps of the size of `x`, or None without one.

        Raises:
            ValueError: there is a position code and `x` is not (B, C, H, W).
        """
        position = self._modules.get("position")
        if position is None:
            return None
        refuse_opacus(position, "position", "whose hooks see one table for all samples")
        size = checks.map_size(x)
        table: Tensor
        if type(x) is not Tensor and shards_pixels(x):
            table = position(*size, sharded=x)
            return table
        # A subclass's table may depend on more than parameters and buffers.
        known = type(position) in (ConvPositionCode, LinearPositionCode)
        if known and why_not_fused(position, PositionCode) is None:
            sources = (*position.parameters(), *position.buffers())
            table = kept(self, "position", sources, lambda: position(*size), size)
        else:
            table = position(*size)
        return table

    def finish(self, pooled: Tensor, tokens: Tensor | None = None) -> Tensor:
        """From the result of `tokenize`, (B, L, C + P), to tokens (B, L, CT): value and token projections.

        The biases assume weights that sum to 1. Where a mask leaves no pixel of a sample, its pooled rows are
        0, and its tokens are what the biases make of 0.
        """
        value, token = self._modules.get("value"), self._modules.get("token")  # self.value takes longer
        if value is not None:
            if self._modules.get("position") is None:
                pooled = value(pooled)
            else:
                valued = value(pooled[..., : self.channels])
                pooled = torch.cat((valued, pooled[..., self.channels :]), -1)
        return pooled if token is None else token(pooled)

    def forward(
        self,
        x: Tensor | PendingMap,
        tokens: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        return_map: bool = True,
    ) -> Tensor | tuple[Tensor | FactoredMap | None, Tensor]:
        """Tokens (B, L, CT) of a feature map.

        Args:
            x: (B, N, C), or (B, C, H, W) in any memory format. Or what a projector returns with `defer`, by a
                tokenizer that can be fused with it: the result is then the map and its tokens.
            tokens: tokens of the module before, (B, L, CT), for tokenizers that need them.
            mask: (B, N) or (B, H, W) bool, True where a pixel takes part; not with backend="reference".
            return_map: of such a projector; False if only the tokens are wanted: the map is then not written.

        Raises:
            TypeError: `x` or `tokens` is no tensor or has another dtype than the parameters.
            ValueError: `x` or `tokens` has a wrong shape, or a mask is given to the reference.
        """
        if mask is not None:
            refuse_opacus(self, "mask", "which computes this module's gradients without it")
        if isinstance(x, PendingMap):
            return self._tokenize_pending(x, tokens, mask, return_map)
        self._check(x, tokens)
        if self.backend == REFERENCE:
            self._refuse_mask(mask)
            refuse_pixel_shards(x, 'with backend="reference"')
            return self._reference(x, tokens)
        if self._why_key_not_folded() is not None:
            return self.finish(self._unfolded(x, tokens, mask), tokens)
        pooled = functional.tokenize(
            x,
            self._queries_for(x, tokens),
            num_heads=self.op_heads,
            mask=mask,
            extra_values=self.position_table(x),
            backend=self.backend,
        )
        return self.finish(pooled, tokens)

    def _tokenize_pending(
        self, pending: PendingMap, tokens: Tensor | None, mask: Tensor | None, return_map: bool
    ) -> tuple[Tensor | FactoredMap | None, Tensor]:
        if pending.channels != self.channels:
            raise ValueError(
                f"`tokenizer` must have channels = {pending.channels}, the projector's out_channels, "
                f"got {self.channels}"
            )
        if self.backend != pending.backend:
            y = pending.run()
            found: Tensor = self(y, tokens, mask=mask)
            return (y if return_map else None), found
        projected, pooled = pending.tokenize(
            self.queries(tokens),
            mask=mask,
            extra_values=self.position_table(pending.call.x),
            return_map=return_map,
        )
        return projected, self.finish(pooled, tokens)

    def _unfolded(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """What `vt_fast.functional.tokenize` would pool, with the key projection on the pixels."""
        refuse_pixel_shards(x, f"where the key projection {self._why_key_not_folded()}")
        pixels = as_pixels(x)
        if mask is not None:
            pixels = torch.where(mask.reshape(*pixels.shape[:2], 1), pixels, 0)
        weights = pixel_softmax(self._logits(pixels, tokens), mask)
        blocks = unflatten(pixels, 2, (self.op_heads, -1)).transpose(1, 2)  # (B, op_heads, N, C / op_heads)
        pooled = (weights @ blocks).transpose(1, 2).flatten(2)
        table = self.position_table(x)
        return pooled if table is None else torch.cat((pooled, weights[:, 0] @ table), -1)

    def _logits(self, pixels: Tensor, tokens: Tensor | None) -> Tensor:
        """Logits (B, op_heads, R, N) with the key projection on the pixels."""
        raise NotImplementedError(f"{type(self).__name__} has no key projection")

    def attention_maps(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """What each token looks at, computed for viewing; the module keeps nothing of it.

        Args:
            x: see :meth:`forward`.
            tokens: see :meth:`forward`.
            mask: see :meth:`forward`; masked pixels have the weight 0.

        Returns:
            (B, L, H, W), or (B, L, N) for a map (B, N, C): non-negative, each token's pixels sum to 1.
        """
        self._check(x, tokens)
        refuse_pixel_shards(x, "where attention maps are wanted")
        if self.backend == REFERENCE:
            self._refuse_mask(mask)
            return maps_like(self._reference_attention(x, tokens).transpose(1, 2), x)
        pixels = as_pixels(x)
        if self._why_key_not_folded() is None:
            logits = self._queries_for(x, tokens) @ pixels.transpose(1, 2)
        else:
            logits = self._logits(pixels, tokens).squeeze(1)
        return maps_like(pixel_softmax(logits, mask), x)

    def _refuse_mask(self, mask: Tensor | None) -> None:
        if mask is not None:
            raise ValueError('`mask` must be None with backend="reference", which has no masks')

    def _check(self, x: Tensor, tokens: Tensor | None) -> None:
        """Raise unless `x` is a map for this module, and `tokens`, where they are used, fit it."""
        check_map(x, self, self.channels)

    def _queries_for(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The queries, for tokenizers whose queries may depend on the map too."""
        return self.queries(tokens)

    def _reference(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The tokens as the paper writes them, with every projection on the pixels."""
        from vt_fast.reference.linear import linear
        from vt_fast.reference.tokenizers import gather

        attention = self._reference_attention(x, tokens)
        pooled = gather(attention, as_pixels(x), value=projection_of(self.value))
        if self.position is not None:
            pooled = torch.cat((pooled, self.position(*checks.map_size(x), attention=attention)), -1)
        token = projection_of(self.token)
        return pooled if token is None else linear(pooled, token)

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The attention (B, N, L) as the paper writes it."""
        raise NotImplementedError(f"{type(self).__name__} is no softmax over the pixels")

    def extra_repr(self) -> str:
        """Widths, heads and backend, for printing."""
        op_heads = f", op_heads={self.op_heads}" if self.op_heads > 1 else ""
        sizes = f"num_tokens={self.num_tokens}, token_channels={self.token_channels}"
        return f"{self.channels}, {sizes}{op_heads}{self._shown_backend()}"

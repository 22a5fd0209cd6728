"""Tokens to pixels: the projector of both versions of the paper."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device

from vt_fast import checks, functional
from vt_fast.backends.contract import Project
from vt_fast.layout import as_pixels, channel_count, unflatten
from vt_fast.nn.base import (
    REFERENCE,
    BackendModule,
    FactoredMap,
    PendingMap,
    check_map,
    like_map,
    maps_like,
    refuse_pixel_shards,
)
from vt_fast.nn.frozen import kept
from vt_fast.nn.linear import GroupedLinear, projection_of, spread
from vt_fast.nn.members import is_bare, unwrapped, why_not_fused
from vt_fast.nn.options import Factory
from vt_fast.nn.products import linear
from vt_fast.nn.tokenizer import Tokenizer


class Projector(BackendModule):
    """Eq. 5: X_out = X + softmax_L((X W_Q)(T W_K)^T) T W_V: each pixel attends to the tokens.

    W_Q is folded into the keys, so that no pixel is projected. The keys have no bias: it would add the
    same to all tokens of a pixel, which the softmax cancels. At initialisation W_V is zero: the map is
    returned unchanged, or through the shortcut.

    Folded, each head of each token is a row of C channels: that is less work than projecting the pixels while
    num_heads * L < C. The first version is ``num_heads=16, query_groups=16``; its number of heads is that of
    the authors' code, as the paper states none.

    Args:
        channels: C of the feature map.
        token_channels: CT, by default `channels`.
        out_channels: D of the map returned, by default `channels`; another D adds the shortcut, a 1x1
            convolution C -> D without bias on the pixels, the one product with N x C that cannot be folded.
        width: channels of queries and keys; by default D, or what the side without a projection has.
        num_heads: head h takes channel block h of `width` and writes channel block h of D.
        query_groups: groups of W_Q; None for no W_Q, where the pixels themselves are the queries.
        key: False for no W_K, where the tokens themselves are the keys.
        value: False for no W_V, as eq. 5 is printed and as the first version has it where D = CT: the tokens
            themselves are added, at initialisation too.
        scale: multiplies the logits; by default sqrt(num_heads / width), as in the first version.
        bias: whether the query and value projections have one.
        backend: see :func:`vt_fast.nn.set_backend`.
        device, dtype: of the parameters.

    Raises:
        ValueError: widths that do not fit without a projection, or groups or heads that do not divide them.

    Example:
        >>> x, tokens = torch.randn(2, 64, 14, 14), torch.randn(2, 16, 128)
        >>> Projector(64, 128, out_channels=96, num_heads=4)(x, tokens).shape
        torch.Size([2, 96, 14, 14])
    """

    def __init__(
        self,
        channels: int,
        token_channels: int | None = None,
        out_channels: int | None = None,
        *,
        width: int | None = None,
        num_heads: int = 1,
        query_groups: int | None = 1,
        key: bool = True,
        value: bool = True,
        scale: float | None = None,
        bias: bool = True,
        backend: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(backend)
        checks.flags(key=key, value=value, bias=bias)
        factory: Factory = {"device": device, "dtype": dtype}
        token_channels = channels if token_channels is None else token_channels
        out_channels = channels if out_channels is None else out_channels
        if width is None:
            width = channels if query_groups is None else out_channels if key else token_channels
        checks.counts(
            channels=channels,
            token_channels=token_channels,
            out_channels=out_channels,
            width=width,
            num_heads=num_heads,
        )
        checks.divides("num_heads", num_heads, "width", width)
        checks.divides("num_heads", num_heads, "out_channels", out_channels)
        if query_groups is None and width != channels:
            raise ValueError(f"`width` must be channels = {channels} without a query projection, got {width}")
        if not key and width != token_channels:
            raise ValueError(f"`width` must be token_channels = {token_channels} without keys, got {width}")
        if not value and out_channels != token_channels:
            raise ValueError(
                f"`out_channels` must be token_channels = {token_channels} without values, got {out_channels}"
            )
        self.channels, self.token_channels, self.out_channels = channels, token_channels, out_channels
        self.width, self.num_heads = width, num_heads
        self.scale = checks.scale(scale, math.sqrt(num_heads / width))
        self.query = (
            None
            if query_groups is None
            else GroupedLinear(channels, width, query_groups, bias=bias, **factory)
        )
        self.key = GroupedLinear(token_channels, width, bias=False, **factory) if key else None
        self.value = (
            GroupedLinear(token_channels, out_channels, bias=bias, gain=0, **factory) if value else None
        )
        self.shortcut = (
            None if out_channels == channels else GroupedLinear(channels, out_channels, bias=False, **factory)
        )

    def operands(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `vt_fast.functional.project` takes, with every projection and the scale folded in.

        Args:
            tokens: (B, L, CT).

        Returns:
            keys (B, num_heads * L, C), values (B, L, D), and the token bias (B, num_heads * L) that the query
            bias becomes, or None without one.
        """
        checks.tokens(tokens, self.token_channels)
        return self._operands(tokens)

    def _operands(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        folded = self._folded_keys()
        if folded is not None:
            weight, bias = folded
            keys = linear(tokens, weight, keeper=self)
            return keys, self._values(tokens), None if bias is None else (tokens * bias).sum(-1)
        rows = self._rows(tokens)
        values = self._values(tokens)
        query = self._modules.get("query")
        if query is None:
            return spread(rows, self.num_heads).flatten(1, 2), values, None
        keys, token_bias = query(rows, fold=(self.num_heads, 1))
        return keys, values, token_bias

    def _rows(self, tokens: Tensor) -> Tensor:
        """The keys before the query projection, (B, L, width), times the scale."""
        key = self._modules.get("key")  # self.key takes longer
        return (tokens if key is None else key(tokens)) * self.scale

    def _values(self, tokens: Tensor) -> Tensor:
        """(B, L, D)."""
        value = self._modules.get("value")
        return tokens if value is None else value(tokens)

    def _folded_keys(self) -> tuple[Tensor, Tensor | None] | None:
        """W_Q^T W_K, (C, CT), and b_Q^T W_K, (CT,), times the scale.

        None where nothing is kept, where the two products are less work than this one, and where a call of
        the members does more than multiply: pruning, for example, makes the weight there.
        """
        if torch.compiler.is_compiling() or "_kept" not in self.__dict__ or self.num_heads > 1:
            return None
        if self.training or torch.is_grad_enabled() or not isinstance(self.scale, (int, float)):
            return None  # a tensor may be written to
        if type(self)._rows is not Projector._rows:
            return None
        query, key = self._modules.get("query"), self._modules.get("key")
        if type(query) is not GroupedLinear or type(key) is not GroupedLinear:
            return None
        if not is_bare(query) or not is_bare(key) or key.groups > 1 or key.bias is not None:
            return None
        sources = (query.weight, query.bias, key.weight)
        if any(type(each) is not nn.Parameter for each in sources if each is not None):
            return None
        if self.channels * self.token_channels >= key.weight.numel() + query.weight.numel():
            return None
        if key.weight.device.type not in ("cpu", "cuda"):  # others may have no float64
            return None

        def fold() -> tuple[Tensor, Tensor | None]:
            # Not as inference tensors, from which nothing else is kept.
            with torch.inference_mode(False), torch.no_grad():
                dtype = key.weight.dtype
                left, right = (
                    unflatten(each.weight.double(), 0, (query.groups, -1)) for each in (query, key)
                )
                right = self.scale * right
                weight = nn.Parameter((left.mT @ right).flatten(0, 1).to(dtype), requires_grad=False)
                if query.bias is None:
                    return weight, None
                # As wide as `project` takes it: it is not rounded, under autocast neither.
                bias = query.bias.double() @ right.flatten(0, 1)
                return weight, bias.to(torch.promote_types(dtype, torch.float32))

        return kept(self, "keys", sources, fold, self.scale, otherwise=lambda: None)

    def residual(self, x: Tensor) -> Tensor:
        """The map to add to: `x` itself, or `x` through the shortcut, in the form of `x`."""
        shortcut = self._modules.get("shortcut")
        if shortcut is None:
            return x
        if x.dim() == 4 and why_not_fused(shortcut, GroupedLinear) is None:
            added: Tensor = shortcut(x, channels_first=True)
            return added
        return like_map(shortcut(as_pixels(x)), x)

    def forward(
        self, x: Tensor | FactoredMap, tokens: Tensor, *, defer: bool = False, weight_channels: int = 0
    ) -> Tensor | PendingMap:
        """The map (B, N, D) or (B, D, H, W), in the form of `x`.

        Args:
            x: (B, N, C), or (B, C, H, W) in any memory format; or the factors of the map that a
                projector with `weight_channels` has returned.
            tokens: (B, L, CT).
            defer: return what a tokenizer needs to compute the map and its tokens in one pass, where that is
                possible; not with backend="reference", nor where hooks look at the query projection.
            weight_channels: with `defer`, keep the map as factors, with this many channels for the weights of
                the tokens of this projector and of later ones; see :meth:`why_no_factors`.

        Raises:
            TypeError: `x` or `tokens` is no tensor or has another dtype than the parameters.
            ValueError: `x` or `tokens` has a wrong shape, or there can be no factors, and `weight_channels`
                asks for them.
        """
        if isinstance(x, FactoredMap) and x.used + tokens.shape[1] > channel_count(x.narrow):
            x = x.wide()  # a relation of an unknown class has made more tokens than there are channels for
        if isinstance(x, FactoredMap):
            keys, values, token_bias = self._operands(tokens)
            pending = self._pending_factors(x, x.rows(keys), values, token_bias)
            return pending if defer else pending.run()
        self._check(x, tokens)
        if weight_channels:
            reason = self.why_no_factors()
            if reason is not None or not defer:
                raise ValueError(
                    f"`weight_channels` must be 0 where the projector {reason or 'does not defer'}, got "
                    f"{weight_channels}"
                )
        if 0 < tokens.shape[1] <= weight_channels:
            shortcut, _ = cast(nn.Module, self.shortcut)(None, parameters=True)
            keys, values, token_bias = self._operands(tokens)
            more = (0, 0, 0, 0, 0, weight_channels) if x.dim() == 4 else (0, weight_channels)
            none = tokens.new_empty(tokens.shape[0], 0, self.out_channels)
            factors = FactoredMap(F.pad(x, more), shortcut, none)
            return self._pending_factors(factors, F.pad(keys, (0, weight_channels)), values, token_bias)
        if self.backend == REFERENCE:
            refuse_pixel_shards(x, 'with backend="reference"')
            return like_map(self._reference(x, tokens), x)
        if self._why_query_not_folded() is not None:
            return self._unfolded(x, tokens)
        keys, values, token_bias = self._operands(tokens)
        residual = self.residual(x)
        is_input = residual is x
        other = None if is_input else residual
        call = Project(x, keys, values, token_bias, other, is_input, self.num_heads)
        pending = PendingMap(call, self.backend)
        return pending if defer else pending.run()

    def _pending_factors(
        self, x: FactoredMap, keys: Tensor, values: Tensor, token_bias: Tensor | None
    ) -> PendingMap:
        """The map as factors: the pixels' weights of tokens go into the next channels of the narrow map."""
        count = values.shape[1]
        place = torch.eye(count, dtype=values.dtype, device=values.device)
        place = F.pad(place, (x.used, channel_count(x.narrow) - x.used - count))
        call = Project(x.narrow, keys, place, token_bias, None, True, 1)
        return PendingMap(call, self.backend, x._replace(values=torch.cat((x.values, values), 1)))

    def why_no_factors(self) -> str | None:
        """Why it cannot return its map as factors (`weight_channels`); None where it can.

        There must be a shortcut, which is a matrix, and one head.
        """
        shortcut = self._modules.get("shortcut")
        if shortcut is None:
            return "has no shortcut"
        reason = why_not_fused(shortcut, GroupedLinear)
        if reason is not None:
            return f"has a shortcut that {reason}"
        layer = cast(GroupedLinear, unwrapped(shortcut))
        if layer.groups > 1 or layer.bias is not None:
            return "has a shortcut with groups or a bias"
        return self.why_not_added()

    def why_not_added(self) -> str | None:
        """Why it cannot add to factors of a map, but for a shortcut; None where it can."""
        if type(self).residual is not Projector.residual or "residual" in self.__dict__:
            return "has a residual of its own"
        if self.num_heads > 1:
            return "has several heads"
        if self.backend == REFERENCE:
            return 'has backend="reference"'
        reason = self._why_query_not_folded()
        return None if reason is None else f"has a query projection that {reason}"

    def _why_query_not_folded(self) -> str | None:
        """Why the query projection runs on the pixels; None where it is folded or there is none."""
        query = self._modules.get("query")
        return None if query is None else why_not_fused(query, GroupedLinear)

    def _unfolded(self, x: Tensor, tokens: Tensor) -> Tensor:
        """With the query projection on the pixels, as any module would call it."""
        refuse_pixel_shards(x, f"where the query projection {self._why_query_not_folded()}")
        pixels, keys = self._queries_and_keys(x, self._rows(tokens))
        y = functional.project(
            pixels,
            keys,
            self._values(tokens),
            num_heads=self.num_heads,
            residual=as_pixels(self.residual(x)),
            backend=self.backend,
        )
        return like_map(y, x)

    def _queries_and_keys(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The query projection of the pixels, (B, N, width), and the keys in rows of their width."""
        return self.query(as_pixels(x)), spread(rows, self.num_heads).flatten(1, 2)  # type: ignore[misc]

    def project_tokenize(
        self,
        x: Tensor,
        tokens: Tensor,
        tokenizer: Tokenizer,
        *,
        mask: Tensor | None = None,
        return_map: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """This projector and the tokenizer of the next module in one pass over the map.

        Two passes where their backends differ; with backend="reference" on either, that one runs as the
        paper writes it.

        Args:
            x: (B, N, C), or (B, C, H, W) in any memory format.
            tokens: (B, L, CT), for the projector and, if it needs any, for the tokenizer.
            tokenizer: a fusable one of D channels.
            mask: see :meth:`Tokenizer.forward`.
            return_map: False if only the tokens are wanted: the map is then not written.

        Returns:
            The map, or None, and the tokenizer's tokens.

        Raises:
            ValueError: a wrong shape, or the tokenizer is not fusable.
        """
        self._check(x, tokens)
        reason = tokenizer.why_not_fusable()
        if reason is not None:
            raise ValueError(f"`tokenizer` must be fusable, got one that {reason}")
        y = self(x, tokens, defer=True)
        if not isinstance(y, PendingMap):
            pooled: Tensor = tokenizer(y, tokens, mask=mask)
            return (y if return_map else None), pooled
        found: tuple[Tensor | None, Tensor] = tokenizer(y, tokens, mask=mask, return_map=return_map)
        return found

    def attention_maps(self, x: Tensor, tokens: Tensor) -> Tensor:
        """What each pixel takes from each token, computed for viewing; the module keeps nothing of it.

        Returns:
            (B, num_heads, L, H, W), or (B, num_heads, L, N) for a map (B, N, C): non-negative, the tokens of
            each pixel sum to 1.
        """
        self._check(x, tokens)
        refuse_pixel_shards(x, "where attention maps are wanted")
        if self.backend == REFERENCE:
            from vt_fast.reference.projector import pixel_attention

            query, key = projection_of(self.query), projection_of(self.key)
            weights = pixel_attention(
                as_pixels(x), tokens, query, key, num_heads=self.num_heads, scale=self.scale
            )
            return maps_like(weights.transpose(2, 3), x)
        if self._why_query_not_folded() is None:
            keys, _, token_bias = self.operands(tokens)
            pixels = as_pixels(x)
        else:
            pixels, keys = self._queries_and_keys(x, self._rows(tokens))
            token_bias = None
        logits = keys @ pixels.transpose(1, 2)
        if token_bias is not None:
            logits = logits + token_bias.unsqueeze(2)
        return maps_like(unflatten(logits, 1, (self.num_heads, -1)).softmax(2), x)

    def _check(self, x: Tensor, tokens: Tensor) -> None:
        check_map(x, self, self.channels)
        checks.tokens(tokens, self.token_channels, x=x)

    def _reference(self, x: Tensor, tokens: Tensor) -> Tensor:
        from vt_fast.reference.projector import projector

        return projector(
            as_pixels(x),
            tokens,
            projection_of(self.query),
            projection_of(self.key),
            projection_of(self.value),
            num_heads=self.num_heads,
            scale=self.scale,
            shortcut=projection_of(self.shortcut),
        )

    def extra_repr(self) -> str:
        """Widths, heads and backend, for printing."""
        num_heads = f", num_heads={self.num_heads}" if self.num_heads > 1 else ""
        sizes = f"token_channels={self.token_channels}, out_channels={self.out_channels}, width={self.width}"
        return f"{self.channels}, {sizes}{num_heads}{self._shown_backend()}"

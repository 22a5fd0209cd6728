"""One Visual Transformer: pixels to tokens, tokens among themselves, tokens back to pixels."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.types import Device
from typing_extensions import Self

from vt_fast import checks
from vt_fast.nn.base import CompositeModule, PendingMap, autocast_map, set_backend
from vt_fast.nn.build import group_count, make_tokenizer, make_transformer
from vt_fast.nn.members import why_not_fused
from vt_fast.nn.options import FeedForwardOptions, ModuleOptions, TokenNorm, Variant
from vt_fast.nn.position import PositionCode
from vt_fast.nn.projector import Projector
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.nn.traced import is_traced, leaf


class VisualTransformer(CompositeModule):
    """The paper's module: tokenizer, token transformer, projector. :meth:`from_parts` takes them ready-made.

    Args:
        channels: C of the incoming map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        out_channels: D of the map returned, by default `channels`.
        tokenizer: "filter", "recurrent", "clustering", "pooling", "static" or "dynamic" (the first
            version's two); None hands the incoming tokens straight to the relation.
        relation: "transformer", "graph" or "none": how the tokens are related.
        projector: False where only the tokens are wanted.
        num_heads: of the projector and of a dynamic tokenizer.
        num_token_heads: of the token transformer.
        token_groups: groups of the token transformer's key, query and value (the paper's counts: 4).
        group_width: None for eqs. 1 and 2 as printed. A number adds the value and key 1x1 convolutions to
            the tokenizer (pooling: the token 1x1 alone), and puts them and the projector's query in
            groups of this many channels (the paper's counts: 64). It must divide `channels` and
            `out_channels`; widths that are not larger make one group.
        token_norm: of the tokens that enter the relation, so that it does not depend on the scale of the map:
            "batch", "layer" or None. The paper's equations have none, its counts cannot tell. "layer" needs
            no batch; in a network trained by SGD at rates such as 0.1 use "batch", as the VT-ResNets of
            :mod:`vt_fast.models` do; see :func:`vt_fast.nn.norm.make_token_norm`.
        bias: whether the projections have one, except those whose bias a softmax would cancel. The paper's
            equations and counts have none.
        variant: of the token transformer: "v2", "v1" or "scaled"; see :class:`TokenTransformer`.
        projector_value: False where the projector adds the tokens themselves, as eq. 5 is printed; then
            `out_channels` must be `token_channels`.
        position: a position code for the tokenizer: "conv" (the first version's) or "linear", both with a
            grid of 14 x 14 and 49 numbers per token; or your own, which keeps its device and dtype; None for
            none.
        backend: see :func:`vt_fast.nn.set_backend`.
        device, dtype: of the parameters.

    Raises:
        ValueError: an unknown name, or numbers that do not divide as they must.

    Example:
        >>> vt = VisualTransformer(64, num_tokens=16)
        >>> y, tokens = vt(torch.randn(2, 64, 14, 14))
        >>> y.shape, tokens.shape
        (torch.Size([2, 64, 14, 14]), torch.Size([2, 16, 64]))
    """

    tokenizer: Tokenizer | None
    transformer: nn.Module
    projector: Projector | None

    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        *,
        token_channels: int | None = None,
        out_channels: int | None = None,
        tokenizer: str | None = "filter",
        relation: str = "transformer",
        projector: bool = True,
        num_heads: int = 1,
        num_token_heads: int = 1,
        token_groups: int = 1,
        group_width: int | None = None,
        token_norm: TokenNorm | None = "layer",
        bias: bool = True,
        variant: Variant = "v2",
        projector_value: bool = True,
        position: str | PositionCode | None = None,
        backend: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        token_channels = channels if token_channels is None else token_channels
        out_channels = channels if out_channels is None else out_channels
        checks.counts(channels=channels, num_tokens=num_tokens, out_channels=out_channels)
        checks.flags(projector=projector, projector_value=projector_value, bias=bias)
        query_groups = 1
        if group_width is not None:
            checks.count("group_width", group_width)
        if group_width is not None and projector:
            query_groups = group_count(group_width, "out_channels", out_channels)
            if channels % query_groups:
                raise ValueError(
                    f"`group_width` must cut out_channels = {out_channels} into a number of groups that "
                    f"divides channels = {channels}, got {group_width}, hence {query_groups} groups"
                )
        common: ModuleOptions = {"bias": bias, "device": device, "dtype": dtype}
        sizes = (num_tokens, token_channels)
        to_pixels = None
        if projector:
            widths = (channels, token_channels, out_channels)
            to_pixels = Projector(
                *widths, num_heads=num_heads, query_groups=query_groups, value=projector_value, **common
            )
        to_tokens = make_tokenizer(tokenizer, channels, *sizes, num_heads, group_width, position, **common)
        of_tokens: FeedForwardOptions = {**common, "groups": token_groups, "token_norm": token_norm}
        relate = make_transformer(relation, *sizes, num_token_heads, variant, **of_tokens)
        self._assemble(to_tokens, relate, to_pixels, backend)

    @classmethod
    def from_parts(
        cls,
        tokenizer: Tokenizer | None,
        transformer: nn.Module,
        projector: Projector | None = None,
        *,
        backend: str | None = None,
    ) -> Self:
        """A Visual Transformer of ready-made parts.

        Args:
            tokenizer: pixels to tokens; None hands the incoming tokens straight to the transformer.
            transformer: (B, L, CT) -> (B, L, CT), for example a :class:`TokenTransformer`.
            projector: tokens to pixels; None where only the tokens are wanted.
            backend: if given, set on all parts; see :func:`vt_fast.nn.set_backend`.

        Raises:
            TypeError: a part of another type.
            ValueError: the channels of the parts do not fit together.

        Example:
            >>> from vt_fast.nn import FilterTokenizer
            >>> vt = VisualTransformer.from_parts(FilterTokenizer(64, 8), nn.Linear(64, 64))
            >>> vt(torch.randn(2, 64, 14, 14))[1].shape
            torch.Size([2, 8, 64])
        """
        made = cls.__new__(cls)
        CompositeModule.__init__(made)
        made._assemble(tokenizer, transformer, projector, backend)
        return made

    def _assemble(
        self,
        tokenizer: Tokenizer | None,
        transformer: nn.Module,
        projector: Projector | None,
        backend: str | None,
    ) -> None:
        if not isinstance(transformer, nn.Module):
            raise TypeError(f"`transformer` must be an nn.Module, got {type(transformer).__name__}")
        for name, part, kind in (("tokenizer", tokenizer, Tokenizer), ("projector", projector, Projector)):
            if part is not None and not isinstance(part, kind):
                raise TypeError(f"`{name}` must be None or a {kind.__name__}, got {type(part).__name__}")
        self.tokenizer, self.transformer, self.projector = tokenizer, transformer, projector
        if tokenizer is not None and projector is not None and projector.channels != tokenizer.channels:
            raise ValueError(
                f"`projector` must have channels = {tokenizer.channels}, the tokenizer's, "
                f"got {projector.channels}"
            )
        found = None
        for name in ("tokenizer", "transformer", "projector"):
            width = getattr(getattr(self, name), "token_channels", None)
            if found is not None and width not in (None, found):
                raise ValueError(
                    f"`{name}` must have token_channels = {found}, as the parts before it, got {width}"
                )
            found = width if found is None else found
        if backend is not None:
            set_backend(self, backend)

    def forward(
        self,
        x: Tensor | PendingMap,
        tokens: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        defer: bool = False,
        keep_map: bool = False,
        weight_channels: int = 0,
    ) -> tuple[Tensor | PendingMap | None, Tensor]:
        """The map, in the form of `x` (None without projector), and the tokens (B, L, CT).

        Args:
            x: (B, N, C), or (B, C, H, W) in any memory format. Or the map that the module before returned
                with `defer`.
            tokens: tokens of the module before, for tokenizers that need them.
            mask: (B, N) or (B, H, W) bool, True where the tokens may use a pixel; every pixel of the map is
                written. Not with backend="reference".
            defer: leave the map to the module after this one, which may compute it and its own tokens in one
                pass; see :meth:`Projector.forward`.
            keep_map: without a projector return the incoming map, not None.
            weight_channels: see :meth:`Projector.forward`.

        Raises:
            ValueError: `x` or `tokens` has a wrong shape or is missing.
        """
        if is_traced(x):
            return cast("tuple[Tensor, Tensor]", leaf(self, x, tokens, mask=mask, keep_map=keep_map))
        if not isinstance(x, PendingMap):
            x = autocast_map(x, self)
        projector = self._modules.get("projector")  # self.projector takes longer
        y, tokens = self._tokenize(x, tokens, mask, return_map=keep_map or projector is not None)
        if projector is None:
            return (y if keep_map else None), tokens
        if defer and why_not_fused(projector, Projector) is None:
            more = {"weight_channels": weight_channels} if weight_channels else {}
            return projector(y, tokens, defer=True, **more), tokens
        return projector(y, tokens), tokens

    def tokenize(self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """The tokens alone: tokenizer and transformer."""
        return self._tokenize(x, tokens, mask, return_map=False)[1]

    def _tokenize(
        self, x: Tensor | PendingMap, tokens: Tensor | None, mask: Tensor | None, *, return_map: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The map, or None if it is not wanted and need not be written, and the tokens."""
        tokenizer = self._modules.get("tokenizer")
        options = {} if mask is None else {"mask": mask}
        before = () if tokens is None else (tokens,)  # hooks of tools such as Opacus take tensors alone
        y: Any = x
        if (
            isinstance(x, PendingMap)
            and tokenizer is not None
            and why_not_fused(tokenizer, Tokenizer) is None
            and cast(Tokenizer, tokenizer).why_not_fusable() is None
        ):
            y, tokens = tokenizer(x, *before, return_map=return_map, **options)
        elif tokenizer is not None or return_map:
            y = x.run() if isinstance(x, PendingMap) else x
            tokens = tokens if tokenizer is None else tokenizer(y, *before, **options)
        else:
            y = None
        if tokens is None:
            raise ValueError("`tokens` must be (B, L, CT) where there is no tokenizer, got None")
        return y, self.transformer(tokens)

    def why_not_fused(self) -> str | None:
        """Why the tokenizer does not share a pass with the projector before it; None where it can."""
        if self.tokenizer is None:
            return "it has no tokenizer"
        reason = why_not_fused(self.tokenizer, Tokenizer)
        if reason is None:
            reason = self.tokenizer.why_not_fusable()
        return None if reason is None else f"its tokenizer {reason}"

    def attention_maps(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """The tokenizer's attention maps, (B, L, H, W) or (B, L, N); see :meth:`Tokenizer.attention_maps`.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("`tokenizer` must not be None where attention maps are wanted")
        return self.tokenizer.attention_maps(x, tokens, mask=mask)

"""One Visual Transformer: pixels to tokens, tokens among themselves, tokens back to pixels."""

from __future__ import annotations

from torch import Tensor, nn

from vt_fast.nn.base import Container, autocast_map, check_positive, set_backend
from vt_fast.nn.build import make_tokenizer, make_transformer
from vt_fast.nn.position import PositionCode
from vt_fast.nn.projector import Projector
from vt_fast.nn.tokenizer import Tokenizer


class VisualTransformer(Container):
    """The paper's module: tokenizer, token transformer, projector.

    Args:
        tokenizer: pixels to tokens; None hands the incoming tokens straight to the transformer.
        transformer: (B, L, CT) -> (B, L, CT), for example a :class:`TokenTransformer`.
        projector: tokens to pixels; None where only the tokens are wanted.
        backend: if given, set on all members; see :class:`vt_fast.nn.Module`.

    Raises:
        ValueError: the channels of the members do not fit together.

    Example:
        >>> import torch
        >>> vt = VisualTransformer.build(64, num_tokens=16)
        >>> y, tokens = vt(torch.randn(2, 64, 14, 14))
        >>> y.shape, tokens.shape
        (torch.Size([2, 64, 14, 14]), torch.Size([2, 16, 64]))
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        transformer: nn.Module,
        projector: Projector | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.transformer, self.projector = tokenizer, transformer, projector
        if tokenizer is not None and projector is not None and projector.channels != tokenizer.channels:
            raise ValueError(
                f"`projector` must have channels = {tokenizer.channels}, the tokenizer's, "
                f"got {projector.channels}"
            )
        found = None
        for name in ("tokenizer", "transformer", "projector"):
            count = getattr(getattr(self, name), "token_channels", None)
            if found is not None and count not in (None, found):
                raise ValueError(
                    f"`{name}` must have token_channels = {found}, as the members before it, got {count}"
                )
            found = count if found is None else found
        if backend is not None:
            set_backend(self, backend)

    @classmethod
    def build(
        cls,
        channels: int,
        *,
        num_tokens: int = 16,
        token_channels: int | None = None,
        out_channels: int | None = None,
        tokenizer: str | None = "filter",
        relation: str = "attention",
        project: bool = True,
        num_heads: int = 1,
        num_token_heads: int = 1,
        token_groups: int = 1,
        group_width: int | None = None,
        norm: bool | str = True,
        bias: bool = True,
        version: int = 2,
        position: PositionCode | None = None,
        backend: str | None = None,
    ) -> VisualTransformer:
        """Make the paper's module from a few numbers.

        Args:
            channels: C of the incoming map.
            num_tokens: L.
            token_channels: CT, by default `channels`.
            out_channels: D of the map returned, by default `channels`.
            tokenizer: "filter", "recurrent", "clustering", "pooling", "static" or "dynamic" (the first
                version's two); None for none.
            relation: "attention", "graph" or "none": how the tokens meet.
            project: False for no projector.
            num_heads: of the projector and of a dynamic tokenizer.
            num_token_heads: of the token transformer.
            token_groups: groups of the token transformer's key, query and value (the paper's counts: 4).
            group_width: None for eqs. 1 and 2 as printed. A number adds the value and key 1x1 convolutions to
                the tokenizer (pooling: the token 1x1 alone), and puts them and the projector's query in
                groups of this many channels (the paper's counts: 64).
            norm: of the tokens that enter the transformer, so that it need not know the scale of the map:
                "batch", "layer" or True for the same, False for none. The paper's equations have none, its
                counts cannot tell. Ours needs no batch; in a network trained by SGD at rates such as 0.1,
                take "batch", as :mod:`vt_fast.models` does; see :func:`vt_fast.nn.norm.token_norm`.
            bias: whether the members' projections have one, those aside whose bias a softmax would cancel.
                The paper's equations and counts have none.
            version: of the token transformer, 2 or 1.
            position: a position code for the tokenizer.
            backend: see :class:`vt_fast.nn.Module`.

        Raises:
            ValueError: an unknown name, or numbers that do not divide as they must.

        Example:
            >>> VisualTransformer.build(64, tokenizer="recurrent", project=False).projector is None
            True
        """
        if group_width is not None:
            check_positive(group_width=group_width)
        token_channels = channels if token_channels is None else token_channels
        out_channels = channels if out_channels is None else out_channels
        projector = None
        if project:
            groups = 1 if group_width is None else max(out_channels // group_width, 1)
            if channels % groups or out_channels % groups:
                raise ValueError(
                    f"`group_width` must cut `out_channels` = {out_channels} into a number of groups that "
                    f"divides it and `channels` = {channels}, got {group_width}, hence {groups} groups"
                )
            projector = Projector(
                channels, token_channels, out_channels, num_heads=num_heads, query_groups=groups, bias=bias
            )
        return cls(
            make_tokenizer(
                tokenizer, channels, num_tokens, token_channels, num_heads, group_width, position, bias
            ),
            make_transformer(
                relation, num_tokens, token_channels, num_token_heads, token_groups, norm, version, bias
            ),
            projector,
            backend=backend,
        )

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """The map, in the form of `x` (None without projector), and the tokens (B, L, CT).

        Args:
            x: (B, N, C), or (B, C, H, W) in any memory format.
            tokens: tokens of the module before, for tokenizers that need them.
            mask: (B, N) or (B, H, W) bool, True where a pixel may be looked at by the tokens; every pixel of
                the map is written. Not with backend="reference".

        Raises:
            ValueError: `x` or `tokens` has a wrong shape or is missing.
        """
        x = autocast_map(x, self)
        tokens = self.tokenize(x, tokens, mask=mask)
        return (None if self.projector is None else self.projector(x, tokens)), tokens

    def tokenize(self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """The tokens alone: tokenizer and transformer."""
        if self.tokenizer is not None:
            tokens = self.tokenizer(x, tokens, mask=mask)
        elif tokens is None:
            raise ValueError("`tokens` must be (B, L, CT) where there is no tokenizer, got None")
        related: Tensor = self.transformer(tokens)
        return related

    def attention_maps(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The tokenizer's attention maps, (B, L, H, W) or (B, L, N); see :meth:`Tokenizer.attention_maps`.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("`tokenizer` must not be None where attention maps are wanted")
        return self.tokenizer.attention_maps(x, tokens)

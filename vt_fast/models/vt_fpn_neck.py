"""VT-FPN: the paper's feature pyramid, whose levels meet as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vt_fast.models.fpn_neck import check_levels, check_maps, check_mask, convolution
from vt_fast.models.resnet import Norm
from vt_fast.nn import PositionCode, Projector, Tokenizer
from vt_fast.nn.base import Container, set_backend
from vt_fast.nn.build import make_tokenizer, make_transformer

# The others take the tokens of a module before, and there is none.
TOKENIZERS = ("filter", "clustering", "pooling", "static")


class VTFPN(Container):
    """The paper's pyramid: each level becomes tokens, all tokens meet, each level takes its own ones back.

    With Y_i = X_i M_i the level's lateral 1x1 convolution, T_i = tokenizer_i(Y_i), [T'_1 | T'_2 | ..] =
    transformer([T_1 | T_2 | ..]) and out_i = projector_i(Y_i, T'_i) = Y_i + softmax_L((Y_i W_Q)(T'_i W_K)^T)
    T'_i W_V. There is no path from coarse to fine between the maps and no 3x3 convolution. The defaults are
    those that meet the paper's counts. At initialisation W_V is zero, so that the laterals are returned.

    All projections of the pixels but the lateral itself are folded into the tokens. The lateral could be: but
    Y_i has to be written all the same, as what the projector adds to, and tokenizer and projector would
    then read X_i, which at each level of a ResNet-50 or 101 has no fewer channels than Y_i. So Y_i is
    written once and read twice. The parameters of the laterals have the names of :class:`FPN`'s.

    Args:
        in_channels: of each incoming map, the finest first.
        channels: of the laterals, and of every map returned.
        num_tokens: L, of each level.
        token_channels: CT.
        tokenizer: "filter", "clustering", "pooling" or "static".
        group_width: None for eq. 1 as printed; a number adds the value 1x1 convolution in groups of so many
            channels; see :meth:`vt_fast.nn.VisualTransformer.build`.
        relation: "attention", "graph" or "none": how the tokens meet. With "none" the levels never do.
        num_heads: of the projectors.
        num_token_heads: of the token transformer.
        query_groups: groups of the projectors' W_Q; None for no W_Q.
        token_groups: groups of the token transformer's key, query and value; by default 4 with attention.
        token_norm: LayerNorm on the tokens that enter the transformer. Our default, as in
            :class:`vt_fast.nn.VisualTransformer`.
        version: of the token transformer, 2 or 1.
        position: makes a position code for one level's tokenizer; None for none.
        norm: makes the norm of so many channels that follows each lateral, which then has no bias; None for
            biases and no norm.
        backend: see :class:`vt_fast.nn.Module`.

    Attributes:
        out_channels: of every map returned.

    Raises:
        ValueError: no level, an unknown name, or numbers that do not divide as they must.

    Example:
        >>> maps = [torch.zeros(1, 64, 24, 20), torch.zeros(1, 128, 12, 10)]
        >>> [tuple(level.shape) for level in VTFPN((64, 128))(maps)]
        [(1, 256, 24, 20), (1, 256, 12, 10)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        num_tokens: int = 8,
        token_channels: int = 1024,
        tokenizer: str = "filter",
        group_width: int | None = None,
        relation: str = "attention",
        num_heads: int = 1,
        num_token_heads: int = 1,
        query_groups: int | None = 16,
        token_groups: int | None = None,
        token_norm: bool = True,
        version: int = 2,
        position: Callable[[], PositionCode] | None = None,
        norm: Norm | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_levels(in_channels, channels)
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"`tokenizer` must be one of {', '.join(TOKENIZERS)}, got {tokenizer!r}")
        if token_groups is None:
            token_groups = 4 if relation == "attention" else 1
        self.in_channels, self.out_channels, self.num_tokens = tuple(in_channels), channels, num_tokens
        self.inner_blocks = nn.ModuleList(convolution(each, channels, 1, norm) for each in in_channels)
        self.tokenizers = nn.ModuleList()
        for _ in in_channels:
            code = None if position is None else position()
            made = make_tokenizer(tokenizer, channels, num_tokens, token_channels, 1, group_width, code, True)
            self.tokenizers.append(cast(Tokenizer, made))  # None only for the name None
        count = num_tokens * len(in_channels)
        self.transformer = make_transformer(
            relation, count, token_channels, num_token_heads, token_groups, token_norm, version, True
        )
        self.projectors = nn.ModuleList(
            Projector(channels, token_channels, num_heads=num_heads, query_groups=query_groups)
            for _ in in_channels
        )
        if backend is not None:
            set_backend(self, backend)

    def forward(self, maps: Sequence[Tensor], mask: Tensor | None = None) -> list[Tensor]:
        """A map (B, channels, H, W) for each incoming one, of the same size and in its memory format.

        Args:
            maps: (B, C, H, W) each, of any sizes.
            mask: (B, H, W) bool in the image's resolution or any other, False where images of several sizes
                were padded: no token looks there. Each level takes the nearest pixels' values. For filter
                and static tokenizers; not with backend="reference".

        Raises:
            TypeError: no list of floating-point tensors, or a mask of something else than bools.
            ValueError: another number of maps or of channels, or a mask of a wrong shape or where there must
                be none.
        """
        laterals = self.laterals(maps)
        tokens: Tensor = self.transformer(torch.cat(self.tokenize(laterals, mask), 1))
        return [
            projector(x, part)
            for projector, x, part in zip(
                self.projectors, laterals, tokens.split(self.num_tokens, 1), strict=True
            )
        ]

    def laterals(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Each map through its 1x1 convolution: what is tokenized, and what the projectors add to."""
        check_maps(maps, self.in_channels)
        return [block(x) for block, x in zip(self.inner_blocks, maps, strict=True)]

    def tokenize(self, laterals: Sequence[Tensor], mask: Tensor | None = None) -> list[Tensor]:
        """Each level's tokens (B, L, CT), before they have met."""
        if mask is not None:
            check_mask(mask, laterals[0].shape[0])
        return [
            tokenizer(x, mask=None if mask is None else _resized(mask, x))
            for tokenizer, x in zip(self.tokenizers, laterals, strict=True)
        ]

    def attention_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What each level's tokens look at, (B, L, H, W) each, computed for viewing and kept nowhere."""
        return [
            tokenizer.attention_maps(x)  # type: ignore[operator]
            for tokenizer, x in zip(self.tokenizers, self.laterals(maps), strict=True)
        ]


def _resized(mask: Tensor, x: Tensor) -> Tensor:
    """The mask in the size of the map: the nearest pixels' values."""
    wide = F.interpolate(mask.unsqueeze(1).to(torch.uint8), size=x.shape[-2:], mode="nearest")
    return wide.squeeze(1).bool()

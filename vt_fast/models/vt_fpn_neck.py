"""VT-FPN: the paper's feature pyramid, whose levels interact through tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.layout import shards_pixels
from vt_fast.models.contexts import on_device
from vt_fast.models.fpn_neck import check_levels, check_maps, check_mask, convolution
from vt_fast.models.resnet import NormLayer
from vt_fast.models.stage import FIRST_TOKENIZERS, default_token_groups
from vt_fast.nn import PositionCode, Projector, Tokenizer
from vt_fast.nn.base import CompositeModule, set_backend
from vt_fast.nn.build import make_tokenizer, make_transformer
from vt_fast.nn.options import BackendOptions, TokenNorm, Variant, check_keywords, spelled_out
from vt_fast.nn.traced import is_traced, leaf


class VTFPN(CompositeModule):
    """The paper's pyramid: each level becomes tokens, all tokens interact, each level gets its own back.

    With Y_i = X_i M_i the level's lateral 1x1 convolution:

    - T_i = tokenizer_i(Y_i)
    - [T'_1 | T'_2 | ..] = transformer([T_1 | T_2 | ..])
    - out_i = projector_i(Y_i, T'_i) = Y_i + softmax_L((Y_i W_Q)(T'_i W_K)^T) T'_i W_V

    There is no top-down path between the maps and no 3x3 convolution. The defaults meet the paper's counts,
    as does variant "v1".
    At initialisation W_V is zero, so the result is the laterals.

    All projections of the pixels except the lateral are folded into the tokens. Folding the lateral would not
    pay: Y_i has to be written anyway, because the projector adds to it, and in a ResNet-50 or 101 X_i has at
    least as many channels as Y_i at each level. So Y_i is written once and read twice. The parameters of the
    laterals have the names that they have in :class:`FPN`.

    Args:
        in_channels: of each incoming map, the finest first.
        channels: of the laterals and of every returned map.
        num_tokens: L, of each level.
        token_channels: CT.
        tokenizer: "filter", "clustering", "pooling" or "static".
        group_width: None for eq. 1 as printed; a number adds the value 1x1 convolution, with this many
            channels per group, which must divide `channels`; see :class:`vt_fast.nn.VisualTransformer`.
        relation: "transformer", "graph" or "none": how the tokens interact. With "none" the levels do not.
        num_heads: of the projectors.
        num_token_heads: of the token transformer.
        query_groups: groups of the projectors' W_Q; None for no W_Q.
        token_groups: groups of the token transformer's key, query and value; by default 4, in variant "v1" 8.
        token_norm: of the tokens that enter the transformer: "layer" (the default, as in
            :class:`vt_fast.nn.VisualTransformer`), "batch" or None.
        variant: of the token transformer: "v2", "v1" for the paper's first version, which has 0.04 billion
            MACs less and so is nearer to the printed counts, or "scaled"; see
            :class:`vt_fast.nn.TokenTransformer`.
        position: a position code for each level's tokenizer: "conv" or "linear", or your own, of which each
            level gets a copy; see :class:`vt_fast.nn.VisualTransformer`. None for none.
        norm_layer: makes a norm for a number of channels. It follows each lateral, which then has no bias.
            None for biases and no norm.
        backend: see :func:`vt_fast.nn.set_backend`.
        device, dtype: of the parameters.

    Attributes:
        out_channels: of every returned map.

    Raises:
        ValueError: no level, an unknown name, or sizes that do not divide as they must.

    Example:
        >>> maps = [torch.zeros(1, 64, 24, 20), torch.zeros(1, 128, 12, 10)]
        >>> [tuple(level.shape) for level in VTFPN((64, 128))(maps)]
        [(1, 256, 24, 20), (1, 256, 12, 10)]
    """

    @spelled_out(Projector.__init__, BackendOptions)
    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        num_tokens: int = 8,
        token_channels: int = 1024,
        tokenizer: str = "filter",
        group_width: int | None = None,
        relation: str = "transformer",
        num_heads: int = 1,
        num_token_heads: int = 1,
        query_groups: int | None = 16,
        token_groups: int | None = None,
        token_norm: TokenNorm | None = "layer",
        variant: Variant = "v2",
        position: str | PositionCode | None = None,
        norm_layer: NormLayer | None = None,
        **options: Unpack[BackendOptions],
    ) -> None:
        super().__init__()
        check_keywords(VTFPN, options)
        check_levels(in_channels, channels)
        checks.choice("tokenizer", tokenizer, FIRST_TOKENIZERS)
        if token_groups is None:
            token_groups = default_token_groups(relation, variant)
        self.in_channels, self.out_channels, self.num_tokens = tuple(in_channels), channels, num_tokens
        with on_device(options.get("device")):
            self.inner_blocks = nn.ModuleList(
                convolution(each, channels, 1, norm_layer) for each in in_channels
            )
            self.tokenizers = nn.ModuleList()
            for _ in in_channels:
                code = copy.deepcopy(position)  # the levels share no parameters
                made = make_tokenizer(tokenizer, channels, num_tokens, token_channels, 1, group_width, code)
                self.tokenizers.append(cast(Tokenizer, made))  # None only for the name None
            count = num_tokens * len(in_channels)
            sizes = (count, token_channels, num_token_heads)
            self.transformer = make_transformer(
                relation, *sizes, variant, groups=token_groups, token_norm=token_norm
            )
            self.projectors = nn.ModuleList(
                Projector(channels, token_channels, num_heads=num_heads, query_groups=query_groups)
                for _ in in_channels
            )
        self.to(dtype=options.get("dtype"))
        if options.get("backend") is not None:
            set_backend(self, options["backend"])

    def forward(self, maps: Sequence[Tensor], mask: Tensor | None = None) -> list[Tensor]:
        """A map (B, channels, H, W) for each incoming one, of the same size and in its memory format.

        Args:
            maps: (B, C, H, W) each, of any sizes.
            mask: (B, H, W) bool of any resolution, False where images of several sizes were padded: no token
                attends there. Each level takes the nearest value. For filter and static tokenizers; not with
                backend="reference".

        Raises:
            TypeError: not a list of floating-point tensors, or a mask that is not bool.
            ValueError: a wrong number of maps or channels, or a mask of a wrong shape or where none is
                supported.
        """
        if is_traced(maps):
            found = leaf(self, maps, mask)
            return [found[index] for index in range(len(self.in_channels))]
        laterals = self.laterals(maps)
        tokens: Tensor = self.transformer(torch.cat(self.tokenize(laterals, mask), 1))
        return [
            projector(x, part)
            for projector, x, part in zip(
                self.projectors, laterals, tokens.split(self.num_tokens, 1), strict=True
            )
        ]

    def laterals(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Each map after its 1x1 convolution: the input of tokenizers and projectors."""
        check_maps(maps, self.in_channels)
        return [_lateral(block, x) for block, x in zip(self.inner_blocks, maps, strict=True)]

    def tokenize(self, laterals: Sequence[Tensor], mask: Tensor | None = None) -> list[Tensor]:
        """Each level's tokens (B, L, CT), before they interact."""
        return [
            tokenizer(x, mask=each)
            for tokenizer, x, each in zip(self.tokenizers, laterals, _resized(mask, laterals), strict=True)
        ]

    def attention_maps(self, maps: Sequence[Tensor], mask: Tensor | None = None) -> list[Tensor]:
        """The attention of each level's tokens, (B, L, H, W) each; `forward` never computes it."""
        laterals = self.laterals(maps)
        return [
            tokenizer.attention_maps(x, mask=each)  # type: ignore[operator]
            for tokenizer, x, each in zip(self.tokenizers, laterals, _resized(mask, laterals), strict=True)
        ]


def _lateral(block: nn.Module, x: Tensor) -> Tensor:
    """A level's 1x1 convolution and norm."""
    if type(x) is Tensor or not shards_pixels(x):
        return block(x)  # type: ignore[no-any-return]
    from vt_fast.distributed import dtensors

    layers = list(cast(nn.Sequential, block))
    if len(layers) > 1:
        raise ValueError("`norm_layer` must be None where maps are sharded over their pixels")
    conv = cast(nn.Conv2d, layers[0])
    if conv._forward_hooks or conv._forward_pre_hooks or not isinstance(conv, nn.Conv2d):
        raise ValueError("laterals must be convolutions without hooks where maps are sharded over pixels")
    return dtensors.pixelwise(F.conv2d, x, conv.out_channels, conv.weight, conv.bias)


def _resized(mask: Tensor | None, maps: Sequence[Tensor]) -> list[Tensor | None]:
    """The mask in the size of each map, by nearest neighbours."""
    if mask is None:
        return [None] * len(maps)
    check_mask(mask, maps[0].shape[0])
    wide = mask.unsqueeze(1).to(torch.uint8)
    return [F.interpolate(wide, size=x.shape[-2:], mode="nearest").squeeze(1).bool() for x in maps]

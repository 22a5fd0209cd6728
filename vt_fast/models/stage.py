"""The stage of VT blocks that replaces a ResNet's last stage, with every ablation of the paper."""

from __future__ import annotations

import copy
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch.types import Device
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.nn import PositionCode, VisualTransformer, VisualTransformerStack
from vt_fast.nn.base import CompositeModule
from vt_fast.nn.build import POSITIONS, WITH_POSITION, default_later_tokenizer
from vt_fast.nn.options import TokenNorm, Variant, check_keywords, spelled_out
from vt_fast.nn.transformer import VARIANTS

# The others need the tokens of a block before.
FIRST_TOKENIZERS = ("filter", "clustering", "pooling", "static")
V1_HEADS = 16
TOKEN_CHANNELS = 1024


class StageOptions(TypedDict, total=False):
    """The options that all networks with a VT stage take; see :class:`VTStage`."""

    num_tokens: int | None
    token_channels: int
    tokenizer: str | None
    later_tokenizer: str | None
    relation: str
    projector: bool
    projector_value: bool | None
    position: str | PositionCode | None
    later_position: str | PositionCode | None
    num_heads: int | None
    num_token_heads: int
    token_groups: int | None
    group_width: int | None
    token_norm: TokenNorm | None
    variant: Variant | None
    bias: bool
    backend: str | None


def make_stack(
    channels: int,
    num_blocks: int,
    width: int | None = None,
    *,
    last_projector: bool = True,
    out_channels: int | None = None,
    num_tokens: int | None = None,
    token_channels: int = TOKEN_CHANNELS,
    tokenizer: str | None = None,
    later_tokenizer: str | None = None,
    relation: str = "transformer",
    projector: bool = True,
    projector_value: bool | None = None,
    position: str | PositionCode | None = None,
    later_position: str | PositionCode | None = None,
    num_heads: int | None = None,
    num_token_heads: int = 1,
    token_groups: int | None = None,
    group_width: int | None = 64,
    token_norm: TokenNorm | None = "batch",
    variant: Variant | None = None,
    bias: bool = True,
    backend: str | None = None,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> VisualTransformerStack:
    """The blocks of a VT stage; for the options see :class:`VTStage`.

    Args:
        channels: C of the incoming map.
        num_blocks: number of VT blocks.
        width: channels of the map between the blocks; by default 2 C, as in a ResNet's last stage, but at
            most `token_channels` and at least C: 512 for C = 256, 1024 for C = 1024.
        last_projector: True for a map, False if only the tokens are needed, as in classification.
        out_channels: of the map that the last projector returns; by default `width`.

    Example:
        >>> stack = make_stack(64, 2, last_projector=False, token_channels=128, tokenizer="pooling")
        >>> stack(torch.randn(2, 64, 14, 14))[1].shape
        torch.Size([2, 16, 128])
    """
    checks.counts(num_blocks=num_blocks)
    checks.flag("projector", projector)
    checks.flag("projector_value", projector_value, optional=True)
    checks.choice("variant", variant, VARIANTS, optional=True)
    v1 = variant == "v1"
    if tokenizer is None:
        tokenizer = "static" if v1 else "filter"
    checks.choice("tokenizer", tokenizer, FIRST_TOKENIZERS)
    if last_projector and not projector:
        raise ValueError("`projector` must be True if a map is returned, got False")
    if later_tokenizer is not None and not projector:
        raise ValueError(
            f"`later_tokenizer` must be None without projectors, where only the first block has a tokenizer, "
            f"got {later_tokenizer!r}"
        )
    if width is None:
        width = max(channels, min(2 * channels, token_channels))
    if later_tokenizer is None:
        later_tokenizer = default_later_tokenizer(tokenizer)
    if num_heads is None:
        num_heads = V1_HEADS if tokenizer == "static" or later_tokenizer == "dynamic" else 1
    attends = relation == "transformer"  # the other relations have no groups and no variants
    if token_groups is None:
        token_groups = default_token_groups(relation, variant)
    blocks = []
    for index in range(num_blocks):
        first, last = index == 0, index == num_blocks - 1
        here = tokenizer if first else later_tokenizer if projector else None
        wide = out_channels if last and out_channels is not None else width
        name = "position" if first else "later_position"
        blocks.append(
            VisualTransformer(
                channels if first or not projector else width,
                16 if num_tokens is None else num_tokens,
                token_channels=token_channels,
                out_channels=wide,
                tokenizer=here,
                relation=relation,
                projector=projector and (last_projector or not last),
                projector_value=not v1 or wide != token_channels
                if projector_value is None
                else projector_value,
                num_heads=num_heads,
                num_token_heads=num_token_heads,
                token_groups=token_groups,
                group_width=group_width,
                token_norm=token_norm,
                variant=variant if attends and variant is not None else "v2",
                bias=bias,
                position=_position(name, position if first else later_position, v1, here),
                device=device,
                dtype=dtype,
            )
        )
    return VisualTransformerStack.from_parts(blocks, backend=backend)


def default_token_groups(relation: str, variant: Variant | None) -> int:
    """The groups of a token transformer's projections that the paper's counts fit.

    Example:
        >>> default_token_groups("transformer", "v2"), default_token_groups("transformer", "v1")
        (4, 8)
    """
    if relation != "transformer":
        return 1
    return 8 if variant == "v1" else 4


def _position(
    name: str, position: str | PositionCode | None, v1: bool, tokenizer: str | None
) -> str | PositionCode | None:
    """The position code of one block, where None stands for the variant's."""
    if isinstance(position, str):
        checks.choice(name, position, (*POSITIONS, "none"))
        return None if position == "none" else position
    if position is None:
        return "conv" if v1 and tokenizer in WITH_POSITION else None
    return position if name == "position" else copy.deepcopy(position)  # blocks share no parameters


class VTStage(CompositeModule):
    """A stage of VT blocks (the paper's VT modules): a map in, a map of the same size out.

    Sizes that the paper's counts determine are the defaults. The counts do not determine norms and biases.
    The defaults have both, because networks train better with them; the counts have neither
    (`token_norm=None, bias=False`).

    Args:
        channels: C of the incoming map.
        num_blocks: number of VT blocks, 2 or 3 in the paper.
        out_channels: of the map that is returned.
        width: channels of the map between the blocks; by default `out_channels`, but at most `token_channels`
            and at least `channels`: 512 in place of ResNet-18's last stage, 1024 in place of ResNet-50's.
        num_tokens: L; by default 16, and 4 in VT-ResNet-50 and 101 of variant "v1".
        token_channels: CT.
        tokenizer: of the first block: "filter" (the default), "clustering" (k-means), "pooling" (the resized
            map) or "static" (the paper's first version, and the default of variant "v1").
        later_tokenizer: of the other blocks. By default "recurrent" after "filter" or "clustering", "dynamic"
            after "static", otherwise the same as the first.
        relation: "transformer", "graph" or "none": how the tokens of a block interact.
        projector: False for no projectors: the later blocks are then a token relation alone.
        projector_value: whether projectors have a value projection; by default all have one, in variant "v1"
            only those to maps whose width is not `token_channels`.
        position: a position code for the first tokenizer: "conv" (the first version's) or "linear", both with
            a grid of 14 x 14 and 49 numbers per token; your own; or "none". By default "conv" in variant "v1"
            and none otherwise.
        later_position: the same for the tokenizers of the other blocks. Of your own, each gets a copy.
        num_heads: of projectors and dynamic tokenizers; by default 16 with the first version's tokenizers,
            as in the authors' code, otherwise 1. Neither the paper nor its counts tell.
        num_token_heads: of the token transformer; the authors' code has 16.
        token_groups: groups of its key, query and value; by default 4, in variant "v1" 8.
        group_width: channels per group in the tokenizers' value and key convolutions and in the projectors'
            query convolutions; must divide the widths of the maps, of which those that are not larger make
            one group. None for ungrouped queries, and tokenizers without these convolutions.
        token_norm: of the tokens that enter a relation: "batch", "layer" or None. With "layer" or None,
            VT-ResNet-18 diverged from scratch at the paper's learning rate (0.1, SGD).
        variant: "v2" for the paper's module; "v1" for its first version, which sets the defaults above and
            the token transformer; "scaled" for "v2" with another token transformer, see
            :class:`vt_fast.nn.TokenTransformer`. By default "v1" in VT-ResNet-50 and 101, otherwise "v2".
        bias: whether projections have one.
        backend: see :func:`vt_fast.nn.set_backend`.
        device, dtype: of the parameters. A position code of your own keeps its own.

    Attributes:
        stack: the blocks.

    Raises:
        TypeError: an unknown option.
        ValueError: an unknown name, sizes that do not divide as they must, or no projector.

    Example:
        >>> VTStage(64, 2, 128)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 128, 14, 14])
    """

    @spelled_out(make_stack, StageOptions)
    def __init__(
        self,
        channels: int,
        num_blocks: int,
        out_channels: int,
        *,
        width: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[StageOptions],
    ) -> None:
        super().__init__()
        check_keywords(VTStage, options)
        if width is None:
            width = max(channels, min(out_channels, options.get("token_channels", TOKEN_CHANNELS)))
        self.channels, self.out_channels = channels, out_channels
        self.stack = make_stack(
            channels, num_blocks, width, out_channels=out_channels, device=device, dtype=dtype, **options
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H, W), in the memory format of `x`."""
        # Never None: the last block has a projector.
        return cast(Tensor, self.stack(x)[0])

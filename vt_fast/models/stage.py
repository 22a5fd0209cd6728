"""The stage of VT modules that takes the place of a ResNet's last stage, with every ablation of the paper."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from vt_fast.nn import (
    ConvPositionCode,
    LinearPositionCode,
    PositionCode,
    VisualTransformer,
    VisualTransformerStack,
)
from vt_fast.nn.base import Container

# The tokenizer of the first module and that of the later ones.
TOKENIZERS: dict[str, tuple[str, str]] = {
    "recurrent": ("filter", "recurrent"),
    "filter": ("filter", "filter"),
    "clustering": ("clustering", "recurrent"),
    "pooling": ("pooling", "pooling"),
    "v1": ("static", "dynamic"),
}
# The paper's names, and those of `VisualTransformer.build`.
RELATIONS = {"transformer": "attention", "graph": "graph", "none": "none"}
# Both with the paper's numbers: the attention on 14 x 14 cells, 49 numbers for each token.
POSITIONS: dict[str, type[PositionCode]] = {"conv": ConvPositionCode, "linear": LinearPositionCode}
V1_HEADS = 16
TOKEN_CHANNELS = 1024


def vt_stack(
    channels: int,
    num_modules: int,
    *,
    last_projector: bool = False,
    out_channels: int | None = None,
    width: int | None = None,
    num_tokens: int = 16,
    token_channels: int = TOKEN_CHANNELS,
    tokenizer: str = "recurrent",
    relation: str = "transformer",
    projector: bool = True,
    position: str | PositionCode | None = None,
    num_heads: int | None = None,
    num_token_heads: int = 1,
    token_groups: int = 4,
    group_width: int | None = 64,
    norm: bool | str = "batch",
    bias: bool = True,
    backend: str | None = None,
) -> VisualTransformerStack:
    """VT modules in a row, as the paper's networks have them; each keyword is one of its ablations.

    What the paper's counts fix is the default. They cannot tell norms and biases: we have both, as networks
    train better with them, and `norm=False, bias=False` is what the counts were taken of.

    Args:
        channels: C of the map that comes in.
        num_modules: 2 or 3 in the paper.
        last_projector: True for a map; False where only the tokens are wanted, as for classification.
        out_channels: of the map that the last projector returns, by default `width`.
        width: channels of the map between the modules, from the first projector on. By default 2 C, as a
            ResNet's last stage has, but not above `token_channels` nor below C: 512 for C = 256, 1024 for
            C = 1024.
        num_tokens: L.
        token_channels: CT.
        tokenizer: "recurrent": filter-based in the first module, recurrent in the later ones. "filter":
            filter-based in all. "clustering": k-means in the first, recurrent in the later ones. "pooling":
            the resized map in all. "v1": the first version's static one, then its dynamic one.
        relation: "transformer", "graph" or "none": what relates the tokens.
        projector: False for no projector: later modules are a token relation alone.
        position: a position code on the first tokenizer: "conv" (the first version's) or "linear", both of a
            grid of 14 x 14 and with 49 numbers, or one of your own; None for none.
        num_heads: of projectors and dynamic tokenizers; by default 16 with "v1", as there, else 1.
        num_token_heads: of the token transformer.
        token_groups: groups of its key, query and value.
        group_width: channels in each group of the tokenizers' value and key and of the projectors' query
            convolutions; None for ungrouped queries, and tokenizers without these convolutions.
        norm: of the tokens that enter a relation: "batch", "layer" or True for the same, False for none. With
            "layer" or none, VT-ResNet-18 diverged from scratch at the paper's rate, 0.1 by SGD; see
            :func:`vt_fast.nn.norm.token_norm`.
        bias: whether projections have one.
        backend: see :class:`vt_fast.nn.Module`.

    Raises:
        ValueError: an unknown name, numbers that do not divide as they must, or a map is wanted from modules
            without projectors.

    Example:
        >>> import torch
        >>> stack = vt_stack(64, 2, token_channels=128, tokenizer="pooling")
        >>> stack(torch.randn(2, 64, 14, 14))[1].shape
        torch.Size([2, 16, 128])
    """
    first, later = _choice("tokenizer", tokenizer, TOKENIZERS)
    related = _choice("relation", relation, RELATIONS)
    if num_modules < 1:
        raise ValueError(f"`num_modules` must be at least 1, got {num_modules}")
    if last_projector and not projector:
        raise ValueError("`projector` must be True where a map is wanted, got False")
    if out_channels is not None and not last_projector:
        raise ValueError(f"`out_channels` must be None where no map is wanted, got {out_channels}")
    code: PositionCode | None
    code = _choice("position", position, POSITIONS)() if isinstance(position, str) else position
    if width is None:
        width = max(channels, min(2 * channels, token_channels))
    if num_heads is None:
        num_heads = V1_HEADS if tokenizer == "v1" else 1
    common: dict[str, Any] = {
        "num_tokens": num_tokens,
        "token_channels": token_channels,
        "relation": related,
        "num_heads": num_heads,
        "token_heads": num_token_heads,
        # The others have no projections to group.
        "token_groups": token_groups if related == "attention" else 1,
        "group_width": group_width,
        "norm": norm,
        "bias": bias,
    }
    blocks = []
    for index in range(num_modules):
        last = index == num_modules - 1
        wide = width if out_channels is None or not last else out_channels
        blocks.append(
            VisualTransformer.build(
                channels if index == 0 or not projector else width,
                out_channels=wide,
                tokenizer=first if index == 0 else later if projector else None,
                position=code if index == 0 else None,
                project=projector and (last_projector or not last),
                **common,
            )
        )
    return VisualTransformerStack(blocks, backend=backend)


class VTStage(Container):
    """A stage of a network that is made of VT modules: a map comes in, a map of the same size goes out.

    Args:
        channels: C of the map that comes in.
        num_modules: 2 or 3 in the paper.
        out_channels: of the map that goes out.
        width: of the map between the modules; by default `out_channels`, but not above `token_channels` nor
            below `channels`: 512 in the place of ResNet-18's last stage, 1024 in that of ResNet-50's.
        **options: see :func:`vt_stack`.

    Attributes:
        stack: the modules.

    Raises:
        ValueError: as :func:`vt_stack`.

    Example:
        >>> import torch
        >>> VTStage(64, 2, 128)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 128, 14, 14])
    """

    def __init__(
        self, channels: int, num_modules: int, out_channels: int, *, width: int | None = None, **options: Any
    ) -> None:
        super().__init__()
        if width is None:
            width = max(channels, min(out_channels, options.get("token_channels", TOKEN_CHANNELS)))
        self.channels, self.out_channels = channels, out_channels
        self.stack = vt_stack(
            channels, num_modules, last_projector=True, out_channels=out_channels, width=width, **options
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H, W), in the memory format of `x`."""
        # Never None: the last module has a projector.
        return cast(Tensor, self.stack(x)[0])


def _choice(name: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        known = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"`{name}` must be one of {known}, got {value!r}")
    return choices[value]

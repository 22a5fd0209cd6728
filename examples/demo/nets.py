"""Two small networks for the digits that differ only in their last stage."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vt_fast.nn import LinearPositionCode, RecurrentTokenizer, VisualTransformerStack, set_backend
from vt_fast.reference.tokenizers import spatial_attention

_CHANNELS = 64
_SIDE = 8
CLASSES = 10


class TokenNet(nn.Module):
    """Convolutional stem, two Visual Transformers (filter, then recurrent), a linear layer on the tokens.

    The classifier reads the concatenated tokens, where the paper takes their mean, so that tokens can differ.
    That alone does not keep recurrent tokens apart: with plain eq. 2, eight of them peak on about two pixels.
    :class:`TokenFilters` does. The demo prints the number of distinct peaks.
    """

    def __init__(self, num_tokens: int = 8, token_channels: int = 64) -> None:
        super().__init__()
        self.stem = _stem()
        self.stage = VisualTransformerStack(
            _CHANNELS,
            2,
            num_tokens=num_tokens,
            token_channels=token_channels,
            group_width=16,
            last_projector=False,
            position=LinearPositionCode(_SIDE, features=16),
        )
        self.stage[1].tokenizer = TokenFilters(
            _CHANNELS, num_tokens, token_channels, key_groups=4, value_groups=4, token_linear=True
        )
        self.head = nn.Linear(num_tokens * token_channels, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 10) scores."""
        _, tokens = self.stage(self.stem(pictures))
        scores: Tensor = self.head(tokens.flatten(1))
        return scores

    @torch.no_grad()
    def attention_maps(self, pictures: Tensor) -> list[Tensor]:
        """Attention maps of the two tokenizers: (B, L, 8, 8) each; every map sums to 1."""
        return self.stage.attention_maps(self.stem(pictures))


class TokenFilters(RecurrentTokenizer):
    """Eq. 2 with an additional learned filter per token: unit(T_in W_{T->R}) + W_own.

    W_own (L, C) is shared by all pictures. The part that depends on the picture has length sqrt(C), whatever
    the scale of the tokens. Without both, all tokens learn the same filter.
    """

    def __init__(self, channels: int, num_tokens: int, token_channels: int, **options: Any) -> None:
        super().__init__(channels, num_tokens, token_channels, **options)
        self.own = nn.Parameter(3 * torch.randn(num_tokens, channels))

    def queries(self, tokens: Tensor | None = None) -> Tensor:
        """The filters folded with the key projection, (B, L, C)."""
        rows = self._filters(tokens) * self.scale
        return rows if self.key is None else self.key.fold(rows)

    def _filters(self, tokens: Tensor | None) -> Tensor:
        if tokens is None:
            raise ValueError("`tokens` must be given to a recurrent tokenizer, got None")
        return F.normalize(self.query(tokens), dim=-1) * math.sqrt(self.channels) + self.own

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        rows = x.flatten(2).mT
        rows = rows if self.key is None else self.key(rows)
        return spatial_attention(rows, self._filters(tokens), scale=self.scale)


class ConvolutionNet(nn.Module):
    """The same stem, a residual block of two 3x3 convolutions as in a ResNet, and a mean over the pixels.

    With 52 channels it has the MACs of :class:`TokenNet` as the paper writes them.
    """

    def __init__(self, channels: int = 52) -> None:
        super().__init__()
        self.stem = _stem()
        self.stage = _Residual(_CHANNELS, channels)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 10) scores."""
        scores: Tensor = self.head(self.stage(self.stem(pictures)).mean((2, 3)))
        return scores


class _Residual(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride=2, bias=False)
        # Residual branches start at zero, as in vt_fast.nn.
        nn.init.zeros_(self.second_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.shortcut(x) + self.second_norm(self.second(branch)))


def _stem() -> nn.Sequential:
    half = _CHANNELS // 2
    return nn.Sequential(
        *(nn.Conv2d(1, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
        *(nn.Conv2d(half, _CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(_CHANNELS), nn.ReLU()),
    )


def macs(net: nn.Module, *, backend: str | None = None) -> int:
    """Multiply-accumulates of a forward pass on one picture, by `torch.utils.flop_counter`.

    With ``backend="reference"``, those of the paper as written, where projections run on the pixels.
    """
    counted = copy.deepcopy(net).eval()
    set_backend(counted, backend)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        counted(torch.zeros(1, 1, _SIDE, _SIDE))
    return int(counter.get_total_flops()) // 2


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())

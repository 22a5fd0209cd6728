"""The ops as somebody writes them who has a fused attention: tokens and pixels attend to each other.

Fused attention wants the channels of a pixel side by side. Where they are not, the map is copied first, which
is a part of the call, and so of its time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Code: TypeAlias = Callable[..., tuple[Tensor, ...]]
# Queries (B, Lq, C), keys (B, Lk, C), values (B, Lk, C) -> (B, Lq, C), with logits as they are.
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_attention(attend: Attend, *, copies: bool = True) -> dict[str, Code]:
    """The three ops on top of one attention. ``copies``: it wants the channels of a pixel side by side.

    Example:
        >>> import torch
        >>> ops = by_attention(forced(SDPBackend.MATH), copies=False)
        >>> (tokens,) = ops["tokenize"](torch.ones(2, 8, 3, 3), torch.ones(4, 8))
        >>> tokens.shape
        torch.Size([2, 4, 8])
    """

    def pixels_of(x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        return pixels.contiguous() if copies else pixels

    def pool(pixels: Tensor, queries: Tensor) -> Tensor:
        return attend(queries.expand(pixels.shape[0], -1, -1), pixels, pixels)

    def spread(pixels: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return pixels + attend(pixels, keys, values)

    def map_of(pixels: Tensor, like: Tensor) -> Tensor:
        feature_map: Tensor = pixels.transpose(1, 2).unflatten(2, like.shape[2:])
        return feature_map

    def tokenize(x: Tensor, queries: Tensor) -> tuple[Tensor, ...]:
        return (pool(pixels_of(x), queries),)

    def project(x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        return (map_of(spread(pixels_of(x), keys, values), x),)

    def both(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> tuple[Tensor, ...]:
        pixels = spread(pixels_of(x), keys, values)
        return map_of(pixels, x), pool(pixels, queries)

    return {"tokenize": tokenize, "project": project, "project_tokenize": both}


def forced(backend: SDPBackend) -> Attend:
    """PyTorch's fused attention in one implementation, whatever it would choose; raises where it cannot."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            found = F.scaled_dot_product_attention(
                queries[:, None], keys[:, None], values[:, None], scale=1.0
            )
        return found[:, 0]

    return attend


# Those that a CPU has too, and those that a GPU alone has; and which of them take any strides.
SDPA_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
GPU_SDPA_BACKENDS = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def forced_ops(name: str) -> dict[str, Code]:
    """The three ops by one implementation of PyTorch's fused attention, by its short name."""
    backend = {**SDPA_BACKENDS, **GPU_SDPA_BACKENDS}[name]
    return by_attention(forced(backend), copies=backend is not SDPBackend.MATH)

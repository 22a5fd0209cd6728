"""The ops on top of an attention: plain PyTorch's, PyTorch's fused one, FlexAttention, or a package's.

Fused attention wants the channels of a pixel side by side. Where they are not, the map is copied first; the
copy is a part of the call, and so of its time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

Results: TypeAlias = tuple[Tensor, ...]
Code: TypeAlias = Callable[..., Results]
# Queries (B, Lq, C), keys (B, Lk, C), values (B, Lk, C) -> (B, Lq, C), with logits as they are.
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class Style(NamedTuple):
    """How to write the ops."""

    see: Callable[[Tensor], Tensor]  # a 4-D map as attention takes it
    pool: Callable[[Tensor, Tensor], Tensor]  # (seen, queries) -> tokens
    spread: Callable[..., Tensor]  # (seen, keys or query_weight and token_keys, values) -> what is added
    give: Callable[[Tensor, Tensor], Tensor]  # (seen, map) -> 4-D map

    def code(self, op: str) -> Code:
        """The op as a function of its operands."""

        def tokenize(x: Tensor, queries: Tensor) -> Results:
            return (self.pool(self.see(x), queries),)

        def project(x: Tensor, *keys_values: Tensor) -> Results:
            seen = self.see(x)
            return (self.give(seen + self.spread(seen, *keys_values), x),)

        def project_tokenize(x: Tensor, *operands: Tensor) -> Results:
            *keys_values, queries = operands
            seen = self.see(x)
            seen = seen + self.spread(seen, *keys_values)
            return self.give(seen, x), self.pool(seen, queries)

        codes: dict[str, Code] = {"tokenize": tokenize, "project": project}
        return codes.get(op, project_tokenize)


def _pixels(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _map(pixels: Tensor, like: Tensor) -> Tensor:
    feature_map: Tensor = pixels.transpose(1, 2).unflatten(2, like.shape[2:])
    return feature_map


def _pool(pixels: Tensor, queries: Tensor) -> Tensor:
    weights = torch.softmax(pixels @ queries.transpose(-2, -1), dim=1)
    return weights.transpose(1, 2) @ pixels


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.softmax(queries @ keys.transpose(1, 2), dim=-1) @ values


def _dense(pixels: Tensor, query_weight: Tensor, token_keys: Tensor, values: Tensor) -> Tensor:
    return _attend(pixels @ query_weight, token_keys, values)


def _pool_channels(channels: Tensor, queries: Tensor) -> Tensor:
    return torch.softmax(queries @ channels, dim=-1) @ channels.transpose(1, 2)


def _spread_channels(channels: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return values.transpose(1, 2) @ torch.softmax(keys @ channels, dim=1)


# The paper as written; with its query projection folded into the keys; and channel by channel.
EAGER = Style(_pixels, _pool, _dense, _map)
FOLDED = EAGER._replace(spread=_attend)
TRANSPOSED = Style(
    lambda x: x.flatten(2), _pool_channels, _spread_channels, lambda seen, x: seen.unflatten(2, x.shape[2:])
)


def by(attend: Attend, *, copies: bool = True) -> Style:
    """By one attention for both directions. ``copies``: it wants the channels of a pixel side by side."""

    def see(x: Tensor) -> Tensor:
        return _pixels(x).contiguous() if copies else _pixels(x)

    def pool(pixels: Tensor, queries: Tensor) -> Tensor:
        return attend(queries.expand(pixels.shape[0], -1, -1), pixels, pixels)

    return Style(see, pool, attend, _map)


def _with_heads(function: Callable[..., Tensor], axis: int = 1) -> Attend:
    """By a function that wants an axis of heads."""
    return lambda *inputs: function(*(each.unsqueeze(axis) for each in inputs)).squeeze(axis)


def sdpa(backend: SDPBackend | None = None) -> Attend:
    """PyTorch's fused attention: as PyTorch chooses, or in one implementation, which may not run."""
    fused: Callable[..., Tensor] = partial(F.scaled_dot_product_attention, scale=1.0)
    if backend is None:
        return _with_heads(fused)

    def forced(*inputs: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return fused(*inputs)

    return _with_heads(forced)


def flex(function: Callable[..., Any] = flex_attention) -> Attend:
    """FlexAttention, by ``flex_attention`` or what ``torch.compile`` makes of it."""
    return _with_heads(partial(function, scale=1.0))


# Packages for GPUs: module, function, the axis of heads, and the argument for the scale. FlashAttention-2 and
# FFPA take float16 and bfloat16, FlashAttention-2 at most 256 channels.
PACKAGES = {
    "flash-attn": ("flash_attn", "flash_attn_func", 2, "softmax_scale"),
    "xformers": ("xformers.ops", "memory_efficient_attention", 2, "scale"),
    "ffpa": ("ffpa_attn", "ffpa_attn_func", 1, "scale"),
    "natten": ("natten.functional", "attention", 2, "scale"),
}


def by_package(name: str) -> Attend:
    """A package's attention, which is imported by the first call."""
    path, function, heads, scale = PACKAGES[name]

    def attend(*inputs: Tensor) -> Tensor:
        module = importlib.import_module(path)
        # FFPA's fallback is PyTorch's attention, which is a peer already. Without it, it raises.
        no_fallback = partial(mock.patch.object, return_value=False)
        with no_fallback(module.functional.FFPAAttnMeta, "fallback") if name == "ffpa" else nullcontext():
            found: Tensor = getattr(module, function)(*(each.contiguous() for each in inputs), **{scale: 1.0})
        return found

    return _with_heads(attend, heads)


@cache
def absent(on_gpu: bool) -> dict[str, str]:
    """Packages that cannot run here, and why. Without a GPU none is imported."""
    if not on_gpu:
        return dict.fromkeys(PACKAGES, "needs a GPU")
    found = {}
    for name, (module, function, *_) in PACKAGES.items():
        try:
            getattr(importlib.import_module(module), function)
        except Exception as error:  # a package built for another torch may raise anything
            found[name] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return found

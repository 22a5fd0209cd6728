"""Peers that call a fused attention, PyTorch's or a package's: tokens and pixels attend to each other.

Fused attention wants the channels of a pixel side by side. Where they are not, the map is copied first; the
copy is a part of the call, and so of its time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.overrides import TorchFunctionMode

Results: TypeAlias = tuple[Tensor, ...]
Code: TypeAlias = Callable[..., Results]
# Queries (B, Lq, C), keys (B, Lk, C), values (B, Lk, C) -> (B, Lq, C), with logits as they are.
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_attention(attend: Attend, *, copies: bool = True) -> dict[str, Code]:
    """The three ops on top of one attention. ``copies``: it wants the channels of a pixel side by side.

    Example:
        >>> ops = by_attention(sdpa(), copies=False)
        >>> (tokens,) = ops["tokenize"](torch.ones(2, 8, 3, 3), torch.ones(4, 8))
        >>> tokens.shape
        torch.Size([2, 4, 8])
    """

    def pixels_of(x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        return pixels.contiguous() if copies else pixels

    def pool(pixels: Tensor, queries: Tensor) -> Tensor:
        return attend(queries.expand(pixels.shape[0], -1, -1), pixels, pixels)

    def map_of(pixels: Tensor, like: Tensor) -> Tensor:
        feature_map: Tensor = pixels.transpose(1, 2).unflatten(2, like.shape[2:])
        return feature_map

    def tokenize(x: Tensor, queries: Tensor) -> Results:
        return (pool(pixels_of(x), queries),)

    def project(x: Tensor, keys: Tensor, values: Tensor) -> Results:
        pixels = pixels_of(x)
        return (map_of(pixels + attend(pixels, keys, values), x),)

    def both(x: Tensor, keys: Tensor, values: Tensor, queries: Tensor) -> Results:
        pixels = pixels_of(x)
        pixels = pixels + attend(pixels, keys, values)
        return map_of(pixels, x), pool(pixels, queries)

    return {"tokenize": tokenize, "project": project, "project_tokenize": both}


def sdpa(backend: SDPBackend | None = None) -> Attend:
    """PyTorch's fused attention: as PyTorch chooses, or in one implementation, which may not run."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        inputs = queries[:, None], keys[:, None], values[:, None]
        if backend is None:
            return F.scaled_dot_product_attention(*inputs, scale=1.0)[:, 0]
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*inputs, scale=1.0)[:, 0]

    return attend


def flex(function: Callable[..., Any] = flex_attention) -> Attend:
    """FlexAttention, by ``flex_attention`` or what ``torch.compile`` makes of it."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        found: Tensor = function(queries[:, None], keys[:, None], values[:, None], scale=1.0)
        return found[:, 0]

    return attend


def _of_one_head(call: Callable[..., Tensor], axis: int, *, contiguous: bool = False) -> Attend:
    """Attention of one head, whose axis a package wants at that place."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        inputs = [each.unsqueeze(axis) for each in (queries, keys, values)]
        return call(*(each.contiguous() if contiguous else each for each in inputs)).squeeze(axis)

    return attend


def _flash_attn(module: Any) -> Attend:
    return _of_one_head(partial(module.flash_attn_func, softmax_scale=1.0), 2)


def _xformers(module: Any) -> Attend:
    return _of_one_head(partial(module.memory_efficient_attention, scale=1.0), 2)


def _natten(module: Any) -> Attend:
    return _of_one_head(partial(module.attention, scale=1.0), 2, contiguous=True)


def _ffpa(module: Any) -> Attend:
    def call(*inputs: Tensor) -> Tensor:
        # Its fallback is PyTorch's attention, which is a peer already. Without it, it raises.
        with mock.patch.object(module.functional.FFPAAttnMeta, "fallback", return_value=False):
            found: Tensor = module.ffpa_attn_func(*inputs, scale=1.0)
        return found

    return _of_one_head(call, 1, contiguous=True)


# By name: the module to import, and what makes an attention of it. All of them need a GPU. FlashAttention-2
# and FFPA take float16 and bfloat16, FlashAttention-2 at most 256 channels.
PACKAGES: dict[str, tuple[str, Callable[[Any], Attend]]] = {
    "flash-attn": ("flash_attn", _flash_attn),
    "xformers": ("xformers.ops", _xformers),
    "ffpa": ("ffpa_attn", _ffpa),
    "natten": ("natten.functional", _natten),
}


class Installed(NamedTuple):
    """Attention by the name of the package, and why the others are absent."""

    present: dict[str, Attend]
    absent: dict[str, str]


@cache
def installed(on_gpu: bool) -> Installed:
    """Packages that are installed and can run here. Without a GPU none is imported.

    Example:
        >>> installed(False).absent["flash-attn"]
        'needs a GPU'
    """
    present: dict[str, Attend] = {}
    absent: dict[str, str] = {}
    for name, (module, attend) in PACKAGES.items():
        if not on_gpu:
            absent[name] = "needs a GPU"
            continue
        try:
            present[name] = attend(importlib.import_module(module))
        except Exception as error:  # a package built for another torch may raise anything
            absent[name] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return Installed(present, absent)


def by_package(name: str) -> Attend:
    """A package's attention, which is imported by the first call."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return installed(True).present[name](queries, keys, values)

    return attend


class Choices(TorchFunctionMode):
    """Keeps which implementation ``scaled_dot_product_attention`` takes, call by call.

    Example:
        >>> with Choices() as choices:
        ...     _ = by_attention(sdpa())["tokenize"](torch.zeros(1, 8, 2, 2), torch.zeros(3, 8))
        >>> len(choices.names)
        1
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        """Look at the call, then let it go on."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            number = torch._fused_sdp_choice(*args, **kwargs)
            self.names.append(str(SDPBackend(number).name).lower().removesuffix("_attention"))
        return func(*args, **kwargs)

"""Peers from packages that may be installed or not: looked for at run time, and reported as absent otherwise.

- ``flash-attn``: FlashAttention-2; float16 and bfloat16, at most 256 channels.
- ``xformers``: its memory-efficient attention, which chooses among its kernels.
- ``ffpa``: FFPA for wide heads; float16 and bfloat16. Its own fallback to PyTorch's attention is switched
  off, since that is a peer already; it then raises where its kernels cannot do the job.
- ``natten``: NATTEN's plain attention.

All of them need a GPU. None of them is required by anything here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple
from unittest import mock

from torch import Tensor

from benchmarks.attention import Attend


class Package(NamedTuple):
    """Somebody's attention: the module to import, and what makes a call of it."""

    name: str
    module: str
    attend: Callable[[Any], Attend]


class Found(NamedTuple):
    """Attention by the name of the package, and why the others are absent."""

    present: dict[str, Attend]
    absent: dict[str, str]


def _of_one_head(call: Callable[..., Tensor], axis: int, *, contiguous: bool = False) -> Attend:
    """Attention of one head, whose axis a package wants at that place."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        num_heads = [each.unsqueeze(axis) for each in (queries, keys, values)]
        return call(*(each.contiguous() if contiguous else each for each in num_heads)).squeeze(axis)

    return attend


def _flash_attn(module: Any) -> Attend:
    return _of_one_head(partial(module.flash_attn_func, softmax_scale=1.0), 2)


def _xformers(module: Any) -> Attend:
    return _of_one_head(partial(module.memory_efficient_attention, scale=1.0), 2)


def _natten(module: Any) -> Attend:
    return _of_one_head(partial(module.attention, scale=1.0), 2, contiguous=True)


def _ffpa(module: Any) -> Attend:
    def call(*num_heads: Tensor) -> Tensor:
        with mock.patch.object(module.functional.FFPAAttnMeta, "fallback", return_value=False):
            found: Tensor = module.ffpa_attn_func(*num_heads, scale=1.0)
        return found

    return _of_one_head(call, 1, contiguous=True)


PACKAGES = (
    Package("flash-attn", "flash_attn", _flash_attn),
    Package("xformers", "xformers.ops", _xformers),
    Package("ffpa", "ffpa_attn", _ffpa),
    Package("natten", "natten.functional", _natten),
)


@cache
def found(on_gpu: bool) -> Found:
    """What is installed and can run: without a GPU nothing is imported.

    Example:
        >>> found(False).absent["flash-attn"]
        'needs a GPU'
    """
    present: dict[str, Attend] = {}
    absent: dict[str, str] = {}
    for package in PACKAGES:
        if not on_gpu:
            absent[package.name] = "needs a GPU"
            continue
        try:
            present[package.name] = package.attend(importlib.import_module(package.module))
        except Exception as error:  # a package built for another torch may raise anything
            absent[package.name] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return Found(present, absent)

"""Keyword arguments that several constructors share, typed once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypedDict, TypeVar

import torch
from torch.types import Device

Constructor = TypeVar("Constructor", bound=Callable[..., Any])
# Closed sets of names, defined here once.
TokenNorm = Literal["batch", "layer"]
Variant = Literal["v2", "v1", "scaled"]


class Factory(TypedDict, total=False):
    """Where parameters are made, as torch's modules take it."""

    device: Device
    dtype: torch.dtype | None


class BackendOptions(Factory, total=False):
    """What every module takes that computes something."""

    backend: str | None


class ModuleOptions(BackendOptions, total=False):
    """What every module takes that projects something and runs an op."""

    bias: bool


class TokenizerOptions(ModuleOptions, total=False):
    """What most tokenizers take; see :class:`vt_fast.nn.Tokenizer`."""

    value_groups: int | None
    token_linear: bool | None


class RelationOptions(BackendOptions, total=False):
    """What all relations take; see :class:`vt_fast.nn.TokenRelation`."""

    token_norm: TokenNorm | None


class FeedForwardOptions(RelationOptions, total=False):
    """What all relations but the base class take."""

    groups: int
    bias: bool


class BlockOptions(ModuleOptions, total=False):
    """What all blocks of a stack have in common; see :class:`vt_fast.nn.VisualTransformer`."""

    relation: str
    num_heads: int
    num_token_heads: int
    token_groups: int
    group_width: int | None
    token_norm: TokenNorm | None
    variant: Variant
    projector_value: bool


def factory_of(options: Factory) -> Factory:
    """The device and the dtype among the options."""
    return {"device": options.get("device"), "dtype": options.get("dtype")}


def spelled_out(source: Callable[..., Any], options: Any) -> Callable[[Constructor], Constructor]:
    """Replace ``**options`` in the signature of a constructor or function by the keywords of a TypedDict.

    `help`, `inspect.signature` and `torch.nn.utils.skip_init` then see them as if they were listed.

    Args:
        source: the constructor or function that the options are passed to, which has their defaults.
        options: the TypedDict.
    """

    def decorate(constructor: Constructor) -> Constructor:
        own = inspect.signature(constructor)
        shown = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        shown += [
            each
            for name, each in inspect.signature(source).parameters.items()
            if name in options.__optional_keys__
        ]
        constructor.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
        return constructor

    return decorate


def check_keywords(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Raise for options that are not in the signature of `function`, which the user called.

    Where they are passed on, Python would name a function that the user does not know.

    Raises:
        TypeError: an unknown option.

    Example:
        >>> check_keywords(factory_of, {"heads": 2})
        Traceback (most recent call last):
        TypeError: factory_of() got an unexpected keyword argument 'heads'
    """
    known = inspect.signature(function).parameters
    for name in options:
        if name not in known:
            raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument {name!r}")

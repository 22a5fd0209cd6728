"""Models by name: those of vt_fast and timm, and your own."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import vt_fast.models
from recipe import checkpoint
from recipe.requirements import need

# Prefixes of names that end in a depth, with their class or function in `vt_fast.models`.
_FAMILIES = {"resnet": "ResNet", "fpn_resnet": "fpn", "vt_fpn_resnet": "vt_fpn"}
NAMES = "vt_resnet18, resnet50, ...; vt_fpn_resnet50, fpn_resnet18, ...; timm:NAME; MODULE:CALLABLE"


def make(
    name: str, num_classes: int, *, drop_path_rate: float = 0.0, drop_rate: float = 0.0, **options: Any
) -> nn.Module:
    """The model with this name.

    Args:
        name: `vt_resnet18`, `resnet34`, `vt_fpn_resnet50`, `fpn_resnet101` and so on, of ``vt_fast.models``;
            `timm:NAME` for a model of timm; `MODULE:CALLABLE` for your own.
        num_classes: passed to the model.
        drop_path_rate: passed to the model if it is not 0.
        drop_rate: passed to the model if it is not 0.
        **options: passed to the model.

    Raises:
        ValueError: there is no such model, or it does not accept one of the options.

    Example:
        >>> make("resnet18", 10, drop_rate=0.2).dropout
        Dropout(p=0.2, inplace=False)
        >>> make("resnet18", 10, tokenizer="pooling")
        Traceback (most recent call last):
        ...
        ValueError: the model resnet18: got an unexpected keyword argument 'tokenizer'
    """
    maker, fixed = _find(name)
    rates = {"drop_path_rate": drop_path_rate, "drop_rate": drop_rate}
    options |= {"num_classes": num_classes} | {key: rate for key, rate in rates.items() if rate}
    try:
        inspect.signature(maker).bind(*fixed, **options)
    except TypeError as error:
        raise ValueError(f"the model {name}: {error}") from error
    model: nn.Module = maker(*fixed, **options)
    return model


def _find(name: str) -> tuple[Callable[..., nn.Module], tuple[Any, ...]]:
    """The function that makes the model, and its first arguments."""
    where, colon, rest = name.partition(":")
    if where == "timm":
        return need("timm").create_model, (rest,)
    if colon:
        try:
            found: Callable[..., nn.Module] = getattr(importlib.import_module(where), rest)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"unknown model {name}: {error}") from error
        return found, ()
    if hasattr(vt_fast.models, name):
        return getattr(vt_fast.models, name), ()
    if match := re.fullmatch(r"(\w*?)(\d+)", name):
        family = _FAMILIES.get(match[1])
        if family is not None and hasattr(vt_fast.models, family):
            made = getattr(vt_fast.models, family)
            # Strides as in the classifiers, whose weights --backbone-checkpoint loads.
            fitting = partial(made, stride_in_1x1=False) if "fpn" in family else made
            return fitting, (int(match[2]),)
    raise ValueError(f"unknown model {name}; known are {NAMES}")


def option(text: str) -> tuple[str, Any]:
    """Key and value of "key=value"; the value as a Python literal if it is one, otherwise as a string.

    Example:
        >>> option("num_tokens=8"), option("tokenizer=pooling")
        (('num_tokens', 8), ('tokenizer', 'pooling'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def load_backbone(net: nn.Module, path: Path) -> None:
    """Load a classifier's weights, without its last layer `fc`, into ``net.backbone``.

    Raises:
        ValueError: ``net`` has no backbone, or the weights do not fit.
    """
    backbone = getattr(net, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError("the model has no backbone to load weights into")
    load(
        backbone,
        {key: value for key, value in checkpoint.weights(path).items() if not key.startswith("fc.")},
        path,
    )


def load(net: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load weights from a file into ``net``; names and shapes must match exactly.

    Raises:
        ValueError: they do not.
    """
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit: {error}") from error

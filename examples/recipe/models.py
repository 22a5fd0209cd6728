"""Models by name: the package's, timm's, and your own."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

import vt_fast.models
from recipe import checkpoint
from recipe.requirements import need

# Names with a depth at their end that are not names in `vt_fast.models` themselves.
_FAMILIES = {"resnet": "ResNet", "fpn_resnet": "fpn", "vt_fpn_resnet": "vt_fpn"}
NAMES = "vt_resnet18, resnet50 and so on; vt_fpn_resnet50, fpn_resnet18 and so on; timm:NAME; MODULE:CALLABLE"


def make(
    name: str, num_classes: int, *, drop_path: float = 0.0, dropout: float = 0.0, **options: Any
) -> nn.Module:
    """The model of that name.

    Args:
        name: `vt_resnet18`, `resnet34`, `vt_fpn_resnet50`, `fpn_resnet101` and the like, of
            ``vt_fast.models``; `timm:NAME` for a model of timm; `MODULE:CALLABLE` for one of your own.
        num_classes: passed to it.
        drop_path: passed to it where it is not 0, and so is ``dropout``.
        dropout: see there.
        **options: passed to it.

    Raises:
        ValueError: there is none of that name, or it does not take one of the options.

    Example:
        >>> make("resnet18", 10, dropout=0.2).dropout
        Dropout(p=0.2, inplace=False)
        >>> make("resnet18", 10, tokenizer="pooling")
        Traceback (most recent call last):
        ...
        ValueError: the model resnet18: got an unexpected keyword argument 'tokenizer'
    """
    maker, fixed = _find(name)
    names = ("drop_path_rate", "drop_rate") if name.startswith("timm:") else ("drop_path", "dropout")
    chances = zip(names, (drop_path, dropout), strict=True)
    options |= {"num_classes": num_classes} | {key: chance for key, chance in chances if chance}
    try:
        inspect.signature(maker).bind(*fixed, **options)
    except TypeError as error:
        raise ValueError(f"the model {name}: {error}") from error
    model: nn.Module = maker(*fixed, **options)
    return model


def _find(name: str) -> tuple[Callable[..., nn.Module], tuple[Any, ...]]:
    """What makes the model, and its first arguments."""
    where, colon, rest = name.partition(":")
    if where == "timm":
        return need("timm").create_model, (rest,)
    if colon:
        try:
            found: Callable[..., nn.Module] = getattr(importlib.import_module(where), rest)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"there is no model {name}: {error}") from error
        return found, ()
    if hasattr(vt_fast.models, name):
        return getattr(vt_fast.models, name), ()
    if match := re.fullmatch(r"(\w*?)(\d+)", name):
        family = _FAMILIES.get(match[1])
        if family is not None and hasattr(vt_fast.models, family):
            return getattr(vt_fast.models, family), (int(match[2]),)
    raise ValueError(f"there is no model {name}; there are {NAMES}")


def option(text: str) -> tuple[str, Any]:
    """The key and value of "key=value", the value as Python reads it, else as it stands.

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


def load_trunk(net: nn.Module, path: Path) -> None:
    """Put a classifier's weights into ``net.trunk``, all but the classifier itself, `fc`.

    Raises:
        ValueError: ``net`` has no trunk, or the weights are not its.
    """
    trunk = getattr(net, "trunk", None)
    if not isinstance(trunk, nn.Module):
        raise ValueError("the model has no trunk to put weights into")
    load(
        trunk,
        {key: value for key, value in checkpoint.weights(path).items() if not key.startswith("fc.")},
        path,
    )


def load(net: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put weights from a file into ``net``, all of them and no others.

    Raises:
        ValueError: they are not those of ``net``.
    """
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit: {error}") from error

"""Packages that only the examples need: timm, torchvision and scikit-learn."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str) -> Any:
    """Import a module.

    Raises:
        SystemExit: it cannot be imported; the message says how to install it.

    Example:
        >>> need("json").dumps([1])
        '[1]'
        >>> need("no_such_package.optim")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: error: the examples need no_such_package: pip install 'vt_fast[examples]' (No module ...)
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        package = (getattr(error, "name", None) or module).partition(".")[0]
        raise SystemExit(
            f"error: the examples need {package}: pip install 'vt_fast[examples]' ({error})"
        ) from error

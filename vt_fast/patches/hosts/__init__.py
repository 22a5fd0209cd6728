"""One file a host. None of them imports its host's package: classes are recognised by their names."""

from __future__ import annotations

import functools
import importlib
import pkgutil


@functools.cache
def load() -> tuple[str, ...]:
    """Import all files of this folder, which registers what they rewrite. Returns their names."""
    names = tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))
    for name in names:
        importlib.import_module(f"{__name__}.{name}")
    return names

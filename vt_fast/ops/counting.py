"""FLOP formulas of the ops. They are registered when ``torch.utils.flop_counter`` is imported, by anyone.

It imports Triton, which takes ten times as long as this package, and most programs count nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"

_waiting: dict[Any, Callable[..., int]] = {}


def register_formula(op: Any, formula: Callable[..., int]) -> None:
    """Make torch's counter know an op, whose arguments the formula takes, and its results as ``out_val``."""
    counter = sys.modules.get(_COUNTER)
    if counter is None:
        _waiting[op] = formula
    else:
        counter.register_flop_formula(op, get_raw=True)(formula)


class _Finder(MetaPathFinder):
    """Finds the counter as the other finders do, and registers what waits for it."""

    searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _COUNTER or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader  # which the module's sources are asked of
        self.loader.exec_module(module)
        while _waiting:
            op, formula = _waiting.popitem()
            module.register_flop_formula(op, get_raw=True)(formula)


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _Finder())

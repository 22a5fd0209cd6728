"""FLOP formulas of the ops, which are registered when a program imports ``torch.utils.flop_counter``.

That module imports Triton, which takes ten times as long as this package, and most programs count nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"

_formulas: dict[Any, Callable[..., int]] = {}


def register_formula(op: Any, formula: Callable[..., int]) -> None:
    """Make torch's counter know an op, whose arguments the formula takes, and its results as ``out_val``."""
    _formulas[op] = formula
    if _COUNTER in sys.modules:
        # Waits where another thread is importing it.
        _register(importlib.import_module(_COUNTER))


def _register(counter: ModuleType) -> None:
    for op, formula in list(_formulas.items()):
        if op not in counter.flop_registry:
            counter.register_flop_formula(op, get_raw=True)(formula)


class _Finder(MetaPathFinder):
    """Finds the counter as the other finders do, and registers the formulas once it is loaded."""

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
    """A loader, after whose module the formulas are registered."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The loader's."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with its own loader, which is asked for its source later."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)


sys.meta_path.insert(0, _Finder())

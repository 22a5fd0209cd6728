"""Visual Transformers for PyTorch: a few tokens talking to a big feature map.

``import vt_fast`` registers the ops with PyTorch, so that saved programs load; the rest is imported on first
use. It is silent and works without a GPU, without Triton and without a compiled library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vt_fast.version import __version__

if TYPE_CHECKING:
    from vt_fast import (
        distributed,
        flops,
        functional,
        models,
        nn,
        onnx,
        patches,
        reference,
        streaming,
        testing,
    )
    from vt_fast.functional import merge, project, project_tokenize, tokenize
    from vt_fast.models.convert import convert
    from vt_fast.patches import patch, unpatch

_FUNCTIONS = ("tokenize", "project", "project_tokenize", "merge")
_MODULES = (
    "distributed",
    "flops",
    "functional",
    "models",
    "nn",
    "onnx",
    "patches",
    "reference",
    "streaming",
    "testing",
)

__all__ = [
    "__version__",
    "convert",
    "distributed",
    "flops",
    "functional",
    "merge",
    "models",
    "nn",
    "onnx",
    "patch",
    "patches",
    "project",
    "project_tokenize",
    "reference",
    "streaming",
    "testing",
    "tokenize",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        value = getattr(importlib.import_module("vt_fast.functional"), name)
    elif name == "convert":
        value = importlib.import_module("vt_fast.models").convert
    elif name in ("patch", "unpatch"):
        value = getattr(importlib.import_module("vt_fast.patches"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"vt_fast.{name}")
    else:
        raise AttributeError(f"module 'vt_fast' has no attribute {name!r}")
    globals()[name] = value  # asked for once: an op's call costs less than finding it again
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


try:
    import torch as _torch  # noqa: F401
except (ImportError, OSError):
    pass  # every use raises it again, but for `python -m vt_fast info`, which reports it
else:
    from vt_fast import ops as _ops  # noqa: F401

"""torchvision in tests: whether it can be imported, made so where only its compiled part does not fit.

A torchvision built for CUDA does not import beside a CPU build of torch: its library of operators does not
load, and Python code that describes them then finds none. The networks that the tests compare with are plain
Python, so the two operators are declared, without being implemented. This is for tests alone.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

# Declarations last as long as this object does.
_declared: list[torch.library.Library] = []


def importable() -> bool:
    """Whether `import torchvision` works, after declaring its operators where their library does not load."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        if torch.version.cuda is not None:
            raise
    else:
        return True
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    importlib.import_module("torchvision")
    return True

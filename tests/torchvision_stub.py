"""torchvision, where its own library of operators does not load."""

import importlib

import torch

_kept = None  # the definitions last as long as this object


def importable() -> bool:
    """Whether `import torchvision` works; makes it work beside a torch without CUDA.

    torchvision's wheel on PyPI is built for CUDA. Beside a CPU build of torch its library does not load, and
    importing it then fails where it registers fake kernels for operators that nobody has defined. Defining
    their schemas is enough for all that needs none of them: transforms, datasets and models.
    """
    global _kept
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return False
    except RuntimeError:
        if _kept is not None or torch.version.cuda is not None:
            return False
        _kept = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _kept.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importable()
    return True

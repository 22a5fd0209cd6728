"""torchvision beside a CPU build of torch."""

from __future__ import annotations

import torch


def load_torchvision() -> None:
    """Import torchvision, if it is installed, as transformers and timm do.

    Its operators do not load beside a CPU build of torch. Nothing here calls them, so it is enough to declare
    those that torchvision describes to torch.
    """
    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        import torchvision  # noqa: F401

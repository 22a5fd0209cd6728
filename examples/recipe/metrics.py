"""Metrics on the held-out images, over all processes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from recipe.distributed import Group
from vt_fast.models import MeanIoU


class Metric(Protocol):
    """Accumulates batches, then gives scores."""

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch of this process."""

    def result(self, group: Group) -> dict[str, float]:
        """The scores over all processes. All processes must call it."""


class Accuracy:
    """Top-1 and top-5 accuracy.

    Example:
        >>> metric = Accuracy()
        >>> metric.update(torch.arange(8.0).expand(2, 8), torch.tensor([7, 5]))
        >>> metric.result(Group(0, 1, torch.device("cpu")))
        {'top1': 0.5, 'top5': 1.0}
    """

    def __init__(self) -> None:
        self.hits = [0.0, 0.0]
        self.count = 0

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count images with logits (B, classes) and labels (B,)."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        self.hits[0] += float(best[:, 0].sum())
        self.hits[1] += float(best.any(1).sum())
        self.count += len(target)

    def result(self, group: Group) -> dict[str, float]:
        """The two shares."""
        numbers = torch.tensor([*self.hits, float(self.count)], device=group.device)
        first, five, count = group.summed(numbers).tolist()
        return {"top1": first / count, "top5": five / count}


class Overlap:
    """:class:`vt_fast.models.MeanIoU` and the pixel accuracy."""

    def __init__(self, num_classes: int) -> None:
        self.meter = MeanIoU(num_classes)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count pixels with logits (B, classes, H, W) and classes (B, H, W)."""
        self.meter.update(logits, target)

    def result(self, group: Group) -> dict[str, float]:
        """The two scores."""
        self.meter.confusion = group.summed(self.meter.confusion.to(group.device))
        scores = self.meter.compute()
        return {"mean_iou": scores.mean, "pixel_accuracy": scores.accuracy}

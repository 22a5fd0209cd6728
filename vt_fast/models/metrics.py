"""Loss and metric of segmentation: cross-entropy and mean intersection over union."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vt_fast import checks

IGNORE = 255


def default_ignore_index(num_classes: int) -> int:
    """The label of pixels to ignore: 255, or -1 where that is a class."""
    return IGNORE if num_classes <= IGNORE else -1


def segmentation_loss(logits: Tensor, target: Tensor, *, ignore_index: int | None = None) -> Tensor:
    """Mean cross-entropy over the labelled pixels; 0 with zero gradient if there are none.

    The mean of `torch.nn.functional.cross_entropy` is NaN in that case.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64, in 0 to K - 1 or `ignore_index`.
        ignore_index: label of pixels to ignore; by default 255, or -1 where K > 255, so that 255 is a class.

    Returns:
        A scalar.

    Example:
        >>> segmentation_loss(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), 255)).item()
        0.0
    """
    if ignore_index is None:
        ignore_index = default_ignore_index(logits.shape[1])
    total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total / (target != ignore_index).sum().clamp(min=1)


class Scores(NamedTuple):
    """The scores of :class:`MeanIoU`.

    `mean` and `accuracy` are in [0, 1], NaN if no pixel has been counted. `per_class` is (K,) float64 on the
    CPU, NaN for classes that occur in neither labels nor predictions.
    """

    mean: float
    per_class: Tensor
    accuracy: float


class MeanIoU:
    """Mean intersection over union, from one confusion matrix over all pixels of all images.

    The IoU of a class is TP / (TP + FP + FN) over all pixels since the last reset, not image by image. Pixels
    labelled `ignore_index` are ignored, whatever the prediction. The mean is over the classes with
    TP + FP + FN > 0: a class that neither occurs nor is predicted is left out, and one that is only predicted
    counts as 0.

    The matrix is on the device of the last update.

    Args:
        num_classes: K.
        ignore_index: label of pixels to ignore; by default 255, or -1 where K > 255, so that 255 is a class.

    Attributes:
        confusion: (K, K) int64; entry (i, j) is the number of pixels of class i that were predicted as j.

    Example:
        >>> meter = MeanIoU(3)
        >>> meter.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
        >>> scores = meter.compute()
        >>> scores.mean, scores.per_class.tolist()
        (0.5, [0.5, 0.5, nan])
    """

    def __init__(self, num_classes: int, *, ignore_index: int | None = None) -> None:
        checks.counts(num_classes=num_classes)
        self.num_classes = num_classes
        self.ignore_index = default_ignore_index(num_classes) if ignore_index is None else ignore_index
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def reset(self) -> None:
        """Forget all pixels."""
        self.confusion.zero_()

    @torch.no_grad()
    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            predictions: classes, integers of the target's shape; or logits (B, K, ...), whose argmax is
                taken.
            target: integers of any shape (B, ...), in 0 to K - 1 or `ignore_index`.

        Raises:
            TypeError: the target is floating-point.
            ValueError: shapes that do not fit, or a class outside 0 to K - 1.
        """
        checks.tensor("predictions", predictions)
        checks.tensor("target", target)
        if target.is_floating_point():
            raise TypeError(f"`target` must be of integers, got {target.dtype}")
        if predictions.is_floating_point():
            expected = (*target.shape[:1], self.num_classes, *target.shape[1:])
            if tuple(predictions.shape) != expected:
                raise ValueError(
                    f"`predictions` must be {expected}, logits for `target`, got {checks.shape(predictions)}"
                )
            predictions = predictions.argmax(1)
        if predictions.shape != target.shape:
            raise ValueError(
                f"`predictions` must have the shape of `target`, {checks.shape(target)}, "
                f"got {checks.shape(predictions)}"
            )
        target = target.to(predictions.device)
        counted = target != self.ignore_index
        found, true = predictions[counted].long(), target[counted].long()
        for name, classes in (("predictions", found), ("target", true)):
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
                raise ValueError(
                    f"`{name}` must be in 0 to {self.num_classes - 1}, got {int(classes.min())} to "
                    f"{int(classes.max())}"
                )
        pairs = torch.bincount(true * self.num_classes + found, minlength=self.num_classes**2)
        self.confusion = self.confusion.to(pairs.device) + pairs.view_as(self.confusion)

    def all_reduce(self) -> None:
        """Sum the matrices of all processes; call it once before `compute`. No-op without a process group.

        Every process must call it, with the matrix on a device that the group's backend supports.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.confusion)

    def compute(self) -> Scores:
        """The scores over all pixels since the last reset."""
        matrix = self.confusion.double().cpu()
        hits = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - hits
        per_class = hits / union
        return Scores(
            mean=per_class[union > 0].mean().item(),
            per_class=per_class,
            accuracy=(hits.sum() / matrix.sum()).item(),
        )

"""What segmentation is trained with and measured by: cross-entropy, and the mean intersection over union."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vt_fast import checks
from vt_fast.nn.base import check_positive

IGNORE = 255


def segmentation_loss(logits: Tensor, target: Tensor, *, ignore_index: int = IGNORE) -> Tensor:
    """Mean cross-entropy over the pixels that have a label; 0 with gradient 0 where none has one.

    torch's own mean is NaN there, which one image without labels is enough for.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64, in 0 to K - 1 or `ignore_index`.
        ignore_index: label of the pixels that do not count.

    Returns:
        A scalar.

    Example:
        >>> segmentation_loss(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), 255)).item()
        0.0
    """
    total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total / (target != ignore_index).sum().clamp(min=1)


class Scores(NamedTuple):
    """What :class:`MeanIoU` computes.

    `mean` and `accuracy` are numbers in [0, 1], NaN where no pixel has counted yet; `per_class` is (K,)
    float64 on the CPU, NaN for classes that occur in neither labels nor predictions.
    """

    mean: float
    per_class: Tensor
    accuracy: float


class MeanIoU:
    """Mean intersection over union, from one confusion matrix over all pixels of all images.

    Of class k, IoU = TP / (TP + FP + FN), counted over everything since the last reset, not image by image.
    Pixels labelled `ignore_index` count nowhere, whatever is predicted there. The mean is over the classes
    with TP + FP + FN > 0: one that neither occurs nor is predicted is left out, one that is only predicted
    counts as 0.

    The matrix lies on the device of the last update.

    Args:
        num_classes: K.
        ignore_index: label of the pixels that do not count.

    Attributes:
        confusion: (K, K) int64; entry (i, j) is the number of pixels of class i that were taken for class j.

    Example:
        >>> meter = MeanIoU(3)
        >>> meter.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
        >>> scores = meter.compute()
        >>> scores.mean, scores.per_class.tolist()
        (0.5, [0.5, 0.5, nan])
    """

    def __init__(self, num_classes: int, *, ignore_index: int = IGNORE) -> None:
        check_positive(num_classes=num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def reset(self) -> None:
        """Forget all pixels."""
        self.confusion.zero_()

    @torch.no_grad()
    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            predictions: classes, an integer tensor of the target's shape; or logits (B, K, ...), of which the
                largest counts.
            target: integers of any shape (B, ...), in 0 to K - 1 or `ignore_index`.

        Raises:
            TypeError: the target is not of integers.
            ValueError: other shapes, or a class outside of 0 to K - 1.
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
        """Add up the matrices of all processes, once, before `compute`; nothing without a process group.

        Every process must call it, with a matrix on a device that the group's backend takes.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.confusion)

    def compute(self) -> Scores:
        """The scores of all pixels counted since the last reset."""
        matrix = self.confusion.double().cpu()
        hits = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - hits
        per_class = hits / union
        return Scores(
            mean=per_class[union > 0].mean().item(),
            per_class=per_class,
            accuracy=(hits.sum() / matrix.sum()).item(),
        )

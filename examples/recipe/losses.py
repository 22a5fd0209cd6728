"""Losses for classification: cross-entropy, with distillation if there is a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipe.recipes import Recipe

# A scalar from the model (wrapped as in training), images and targets.
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def classification(recipe: Recipe, teacher: nn.Module | None) -> Loss:
    """(1 - d) cross-entropy + d KL(teacher || student), d = ``distillation``.

    Only the cross-entropy has label smoothing. The temperature is 1, because the paper gives none. The
    teacher is in evaluation mode and gets no gradient.

    Raises:
        ValueError: d is above 0 without a teacher, or 0 with one.

    Example:
        >>> loss = classification(Recipe(), None)(nn.Identity(), torch.zeros(1, 4), torch.tensor([2]))
        >>> round(loss.exp().item(), 4)
        4.0
    """
    share = recipe.distillation
    if teacher is None:
        if share:
            raise ValueError(f"`distillation` must be 0 without a --teacher, got {share}")
        return lambda model, images, labels: _cross_entropy(model(images), labels, recipe)
    if not share:
        raise ValueError("`distillation` must be above 0 with a --teacher, got 0")
    teacher.eval().requires_grad_(False)

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        with torch.no_grad():
            wanted = F.log_softmax(_wide(teacher(images)), dim=1)
        told = F.kl_div(F.log_softmax(_wide(logits), dim=1), wanted, reduction="batchmean", log_target=True)
        return (1 - share) * _cross_entropy(logits, labels, recipe) + share * told

    return loss


def _cross_entropy(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    return F.cross_entropy(_wide(logits), labels, label_smoothing=recipe.label_smoothing)


def _wide(logits: Tensor) -> Tensor:
    """At least float32, because autocast gives half-precision logits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

"""What is minimised in classification: cross-entropy, with a teacher's opinion where there is one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipe.recipes import Recipe

# Of a model (wrapped as it is trained), images and target: a scalar.
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def classification(recipe: Recipe, teacher: nn.Module | None) -> Loss:
    """(1 - d) cross-entropy + d KL(teacher || student), d = ``distillation``.

    The cross-entropy alone has the label smoothing. The paper gives no temperature: it is 1. The teacher is
    put into evaluation mode and gets no gradient.

    Raises:
        ValueError: d is above 0 and there is no teacher, or the other way round.

    Example:
        >>> loss = classification(Recipe(), None)(nn.Identity(), torch.zeros(1, 4), torch.tensor([2]))
        >>> round(loss.exp().item(), 4)
        4.0
    """
    share = recipe.distillation
    if teacher is None:
        if share:
            raise ValueError(f"`distillation` = {share} needs a --teacher; without one: --distillation 0")
        return lambda model, images, labels: _cross_entropy(model(images), labels, recipe)
    if not share:
        raise ValueError("`distillation` is 0, so the --teacher would not be heard; say, --distillation 0.8")
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
    """In float32 at least: autocast makes half-precision logits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

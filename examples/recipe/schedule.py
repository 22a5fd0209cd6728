"""Learning rate schedules."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recipe.recipes import Recipe


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of an optimizer step, counted from 0.

    With e = step / steps_per_epoch and w epochs of warm-up: in the warm-up linear from ``warmup_lr`` at e = 0
    to ``lr`` at e = w; then lr decay_factor^floor((e - w) / decay_epochs). With ``decay="1x"`` the rate falls
    at 2/3 and at 8/9 of all epochs, and with "poly" it is lr (1 - (e - w) / (epochs - w))^decay_power.

    Example:
        >>> from recipe.recipes import CLASSIFICATION
        >>> advanced = CLASSIFICATION["advanced"]
        >>> [round(learning_rate(advanced, epoch * 10, 10), 6) for epoch in (0, 1, 5, 6, 7)]
        [0.01, 0.04, 0.16, 0.158, 0.156025]
    """
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * step / warmup
    if recipe.decay == "step":
        falls = int((step - warmup) // (recipe.decay_epochs * steps_per_epoch))
        return recipe.lr * recipe.decay_factor**falls
    if recipe.decay == "1x":
        done = 9 * step / (recipe.epochs * steps_per_epoch)
        return recipe.lr * math.pow(recipe.decay_factor, (done >= 6) + (done >= 8))
    # Schedulers also ask for the rate after the last step, which is 0.
    left = 1 - (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return recipe.lr * math.pow(max(left, 0.0), recipe.decay_power)


def make(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> LambdaLR:
    """A scheduler that is stepped after each optimizer step. The optimizer must have the recipe's rate."""
    return LambdaLR(optimizer, lambda step: learning_rate(recipe, step, steps_per_epoch) / recipe.lr)

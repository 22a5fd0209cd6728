"""The recipe's optimizer, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recipe.recipes import Recipe
from recipe.requirements import need


def make(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """SGD, or RMSProp as in TensorFlow.

    For RMSProp the paper gives only learning rates. The other constants are those of EfficientNet's recipe,
    which uses similar rates: alpha = 0.9, and eps = 1e-3 inside the root. torch's RMSprop has eps outside the
    root and averages that start at 0, so the first steps diverge more easily.
    """
    common: dict[str, Any] = {
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, **common)
    made: torch.optim.Optimizer = need("timm.optim").RMSpropTF(parameters, alpha=0.9, eps=1e-3, **common)
    return made


def average(net: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """The moving average of ``net``'s parameters and buffers in evaluation mode; None without ``ema``.

    After each step: average = ema average + (1 - ema) weights. It starts as the weights after the first step.
    """
    if not recipe.ema:
        return None
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True).eval()

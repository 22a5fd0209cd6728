"""The settings of the paper's training recipes, each of which a flag overrides."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


def _number(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """How to train. ``--help`` describes each field under the flag of the same name.

    ``OURS`` lists the settings that the paper does not state, whose values are this project's choice.

    Example:
        >>> CLASSIFICATION["advanced"].optimizer, CLASSIFICATION["advanced"].ema
        ('rmsprop', 0.99985)
    """

    epochs: int = _number(90, "passes over the training images")
    batch_size: int = _number(256, "images per step of the optimizer, over all processes")
    optimizer: str = _number("sgd", "which optimizer", ("sgd", "rmsprop"))
    lr: float = _number(0.1, "learning rate, after the warm-up")
    momentum: float = _number(0.9, "of the optimizer")
    weight_decay: float = _number(4e-5, "of all parameters")
    warmup_epochs: float = _number(0.0, "epochs in which the rate rises linearly from --warmup-lr")
    warmup_lr: float = _number(0.0, "rate of the first step of the warm-up")
    decay: str = _number("step", "how the rate falls after the warm-up", ("step", "1x", "poly"))
    decay_epochs: int = _number(30, "--decay step: epochs between two falls")
    decay_factor: float = _number(
        0.1, "--decay step and 1x: factor of a fall; those of 1x are at 2/3 and 8/9"
    )
    decay_power: float = _number(0.9, "--decay poly: exponent of the share of remaining steps")
    sync_bn: bool = _number(False, "batch norm over all processes (CUDA only)")
    label_smoothing: float = _number(0.0, "share of the target spread over all classes")
    auto_augment: str = _number("", "timm's name of an AutoAugment policy, '' for none")
    drop_path_rate: float = _number(0.0, "probability of skipping the last residual branch (1 - survival)")
    drop_rate: float = _number(0.0, "of the dropout before the classifier")
    ema: float = _number(0.0, "decay of the moving average of the weights, per step; 0 for none")
    distillation: float = _number(0.0, "weight of the teacher in the loss; the rest is cross-entropy")


CLASSIFICATION: Mapping[str, Recipe] = {
    "default": Recipe(),
    "advanced": Recipe(
        epochs=400,
        batch_size=2048,
        optimizer="rmsprop",
        lr=0.16,
        weight_decay=1e-5,
        warmup_epochs=5,
        warmup_lr=0.01,
        decay_epochs=1,
        decay_factor=0.9875,
        sync_bn=True,
        label_smoothing=0.1,
        auto_augment="original",
        drop_path_rate=0.1,
        drop_rate=0.2,
        ema=0.99985,
        distillation=0.8,
    ),
}
SEGMENTATION: Mapping[str, Recipe] = {
    # Detectron2's semantic FPN 1x: a warm-up of 1,000 steps, 90,000 in all, with falls at 60,000 and 80,000.
    # It has 16 images in a step and half the rate, so its 12 epochs are 45,000 steps here.
    "coco": Recipe(
        epochs=12,
        batch_size=32,
        lr=0.04,
        weight_decay=1e-4,
        warmup_epochs=0.27,
        warmup_lr=4e-5,
        decay="1x",
        sync_bn=True,
    ),
    "lip": Recipe(epochs=150, batch_size=96, lr=0.01, weight_decay=5e-4, decay="poly", sync_bn=True),
}
# Settings that the paper does not state. RMSProp's other constants are in `optim`.
OURS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "advanced": ("momentum", "weight_decay", "label_smoothing"),
    "coco": (
        *("epochs", "optimizer", "momentum", "weight_decay"),
        *("warmup_epochs", "warmup_lr", "decay", "decay_factor"),
    ),
    "lip": ("epochs", "momentum", "decay", "decay_power"),
}


# Fields without a flag in segmentation.
CLASSIFIERS_ONLY = ("label_smoothing", "auto_augment", "drop_path_rate", "drop_rate", "distillation")


def add_arguments(
    parser: argparse.ArgumentParser, recipes: Mapping[str, Recipe], without: Collection[str] = ()
) -> None:
    """Add the flag ``--recipe``, and one for each of its settings except those in ``without``."""
    group = parser.add_argument_group("recipe", "Each flag overrides one setting of --recipe.")
    group.add_argument("--recipe", choices=tuple(recipes), default=next(iter(recipes)))
    kinds = {"int": int, "float": float, "str": str}
    for each in dataclasses.fields(Recipe):
        if each.name in without:
            continue
        flag = f"--{each.name.replace('_', '-')}"
        values = ", ".join(f"{getattr(recipe, each.name)!r} in {name}" for name, recipe in recipes.items())
        text = f"{each.metadata['help']} ({values})"
        if each.type == "bool":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            kind = kinds[str(each.type)]
            group.add_argument(flag, type=kind, choices=each.metadata["choices"], default=None, help=text)
    group.add_argument(
        "--scale-lr",
        action="store_true",
        help="multiply both learning rates by --batch-size divided by the recipe's batch size",
    )


def chosen(options: argparse.Namespace, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe with the command line's overrides.

    Raises:
        ValueError: a setting out of range.
    """
    recipe = recipes[options.recipe]
    asked = {each.name: getattr(options, each.name, None) for each in dataclasses.fields(Recipe)}
    given = dataclasses.replace(recipe, **{name: value for name, value in asked.items() if value is not None})
    if options.scale_lr:
        scale = given.batch_size / recipe.batch_size
        given = dataclasses.replace(given, lr=given.lr * scale, warmup_lr=given.warmup_lr * scale)
    _check(given)
    return given


def _check(recipe: Recipe) -> None:
    for name in ("epochs", "batch_size", "decay_epochs"):
        if getattr(recipe, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(recipe, name)}")
    if not recipe.lr > 0:
        raise ValueError(f"`lr` must be above 0, got {recipe.lr}")
    if not 0 <= recipe.warmup_epochs < recipe.epochs:
        raise ValueError(
            f"`warmup_epochs` must be in [0, epochs = {recipe.epochs}), got {recipe.warmup_epochs}"
        )
    for name in ("label_smoothing", "drop_path_rate", "drop_rate", "ema"):
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"`{name}` must be in [0, 1), got {getattr(recipe, name)}")
    if not 0 <= recipe.distillation <= 1:
        raise ValueError(f"`distillation` must be in [0, 1], got {recipe.distillation}")

"""Train a classifier with one of the paper's recipes; see README.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from recipe import checkpoint, data, losses, models, options, recipes
from recipe.build import build
from recipe.distributed import Group
from recipe.metrics import Accuracy
from recipe.recipes import CLASSIFICATION, Recipe
from recipe.run import Run
from recipe.script import train_from


def main(arguments: Sequence[str] | None = None) -> Run:
    """Train with the given command-line arguments, and return the finished run."""
    return train_from(arguments, _parser(), CLASSIFICATION, _build)


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("Train a classifier.", model="vt_resnet18", image_size=224)
    recipes.add_arguments(parser, CLASSIFICATION)
    teacher = parser.add_argument_group("distillation")
    teacher.add_argument("--teacher", metavar="NAME", help="as --model")
    teacher.add_argument(
        "--teacher-option", type=models.option, action="append", default=[], metavar="KEY=VALUE"
    )
    teacher.add_argument(
        "--teacher-checkpoint", type=Path, metavar="FILE", help="its weights, or a checkpoint of a run"
    )
    return parser


def _build(given: argparse.Namespace, recipe: Recipe, processes: Group) -> Run:
    images = data.classification(given.data, given.image_size, recipe)
    teacher = _teacher(given, images.num_classes)
    if teacher is not None:
        teacher.to(processes.device)

    def make_net() -> nn.Module:
        return models.make(
            given.model,
            images.num_classes,
            drop_path_rate=recipe.drop_path_rate,
            drop_rate=recipe.drop_rate,
            **dict(given.model_option),
        )

    loss = losses.classification(recipe, teacher)
    return build(given, recipe, processes, images=images, make_net=make_net, loss=loss, metric=Accuracy)


def _teacher(given: argparse.Namespace, num_classes: int) -> nn.Module | None:
    if given.teacher is None:
        if given.teacher_checkpoint or given.teacher_option:
            raise ValueError("--teacher-checkpoint and --teacher-option need a --teacher")
        return None
    if given.teacher_checkpoint is None and not dict(given.teacher_option).get("pretrained"):
        raise ValueError(
            "the teacher has no trained weights: give --teacher-checkpoint FILE, or for timm's models "
            "--teacher-option pretrained=True"
        )
    teacher = models.make(given.teacher, num_classes, **dict(given.teacher_option))
    if given.teacher_checkpoint is not None:
        models.load(teacher, checkpoint.weights(given.teacher_checkpoint), given.teacher_checkpoint)
    return teacher


if __name__ == "__main__":
    main()

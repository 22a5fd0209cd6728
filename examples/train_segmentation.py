"""Train a segmentation net by one of the paper's recipes; see the README beside this file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from recipe import masks, models, options, recipes
from recipe.build import build
from recipe.distributed import Group, group
from recipe.loop import train
from recipe.metrics import Overlap
from recipe.recipes import CLASSIFIERS_ONLY, SEGMENTATION, Recipe
from recipe.run import Run
from vt_fast.models import segmentation_loss


def main(arguments: Sequence[str] | None = None) -> Run:
    """Train as the command line says; the finished run, for those who call this from Python."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        recipe = recipes.chosen(given, SEGMENTATION)
        with group(given.device) as processes:
            run = _build(given, recipe, processes)
            train(run)
            return run
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("Train a segmentation net.", model="vt_fpn_resnet50", image_size=473)
    recipes.add_arguments(parser, SEGMENTATION, without=CLASSIFIERS_ONLY)
    parser.add_argument("--num-classes", type=int, metavar="K", help="of a folder's masks")
    parser.add_argument(
        "--trunk-checkpoint", type=Path, metavar="FILE", help="weights of a classifier, for the trunk"
    )
    return parser


def _build(given: argparse.Namespace, recipe: Recipe, processes: Group) -> Run:
    images = masks.segmentation(given.data, given.image_size, given.num_classes)

    def make_net() -> nn.Module:
        net = models.make(given.model, images.num_classes, **dict(given.model_option))
        if given.trunk_checkpoint is not None:
            models.load_trunk(net, given.trunk_checkpoint)
        return net

    # A folder's images are evaluated whole, and may each have another size: one at a time.
    return build(
        given,
        recipe,
        processes,
        images=images,
        make_net=make_net,
        loss=_loss,
        metric=lambda: Overlap(images.num_classes),
        val_batch=None if given.data == "digits" else 1,
    )


def _loss(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The mean is over the pixels with a class of one process's pass, and the step's the mean of these."""
    return segmentation_loss(model(images).float(), target)


if __name__ == "__main__":
    main()

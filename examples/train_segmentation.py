"""Train a segmentation network with one of the paper's recipes; see README.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from recipe import masks, models, options, recipes
from recipe.build import build
from recipe.distributed import Group
from recipe.metrics import Overlap
from recipe.recipes import CLASSIFIERS_ONLY, SEGMENTATION, Recipe
from recipe.run import Run
from recipe.script import train_from
from vt_fast.models import segmentation_loss


def main(arguments: Sequence[str] | None = None) -> Run:
    """Train with the given command-line arguments, and return the finished run."""
    return train_from(arguments, _parser(), SEGMENTATION, _build)


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("Train a segmentation network.", model="vt_fpn_resnet50", image_size=473)
    recipes.add_arguments(parser, SEGMENTATION, without=CLASSIFIERS_ONLY)
    parser.add_argument("--num-classes", type=int, metavar="K", help="number of classes in a folder's masks")
    parser.add_argument(
        "--backbone-checkpoint", type=Path, metavar="FILE", help="weights of a classifier, for the backbone"
    )
    return parser


def _build(given: argparse.Namespace, recipe: Recipe, processes: Group) -> Run:
    images = masks.segmentation(given.data, given.image_size, given.num_classes)

    def make_net() -> nn.Module:
        net = models.make(given.model, images.num_classes, **dict(given.model_option))
        if given.backbone_checkpoint is not None:
            models.load_backbone(net, given.backbone_checkpoint)
        return net

    # A folder's images are evaluated in full and may differ in size, hence one at a time.
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
    """Mean over the labelled pixels of one forward pass; a step averages this over passes and processes."""
    return segmentation_loss(model(images).float(), target)


if __name__ == "__main__":
    main()

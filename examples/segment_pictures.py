"""Draw the predictions of a trained segmentation network on pictures of any size; see README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from recipe import checkpoint, masks, models
from recipe.requirements import need

# Opacity of the class colours.
_OPACITY = 0.6


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Draw with the given command-line arguments, and return the paths of the written files."""
    given = _parser().parse_args(arguments)
    try:
        net = models.make(given.model, given.num_classes, **dict(given.model_option)).eval()
        models.load(net, checkpoint.weights(given.weights), given.weights)
        pictures = [(path.stem, Image.open(path)) for path in given.pictures] or _photographs()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    given.output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in pictures:
        image = picture.convert("RGB")
        classes = predicted(net, image)
        path = given.output / f"{name}.png"
        drawn(image, classes, given.num_classes).save(path)
        written.append(path)
        shares = torch.bincount(classes.flatten(), minlength=given.num_classes) / classes.numel()
        seen = ", ".join(f"{index}: {share:.1%}" for index, share in enumerate(shares.tolist()) if share)
        print(f"{path}, {image.width} x {image.height}, classes {seen}")
    return written


def predicted(net: nn.Module, image: Image.Image) -> Tensor:
    """The class (H, W) of each pixel of a picture, at its own size."""
    with torch.no_grad():
        logits: Tensor = net(masks.prepared(image).unsqueeze(0))
    return logits[0].argmax(0)


def drawn(image: Image.Image, classes: Tensor, num_classes: int) -> Image.Image:
    """The picture, and beside it the picture under the class colours; class 0 has none."""
    hues = torch.arange(num_classes) / num_classes * 2 * torch.pi
    colours = 127.5 + 127.5 * torch.stack([torch.cos(hues - 2 * torch.pi * k / 3) for k in range(3)], 1)
    pixels = np.array(image, dtype=np.float32)
    labels = classes.numpy()
    mixed = (1 - _OPACITY) * pixels + _OPACITY * colours.numpy()[labels]
    mixed = np.where(labels[..., None] == 0, pixels, mixed)
    return Image.fromarray(np.concatenate([pixels, mixed], 1).round().astype(np.uint8))


def _photographs() -> list[tuple[str, Image.Image]]:
    load = need("sklearn.datasets").load_sample_image
    return [(name, Image.fromarray(load(f"{name}.jpg"))) for name in ("china", "flower")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draw the predictions of a trained segmentation network.")
    parser.add_argument(
        "pictures", nargs="*", type=Path, metavar="PICTURE", help="default: scikit-learn's photographs"
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="weights.pt of a run")
    parser.add_argument("--model", default="vt_fpn_resnet50", metavar="NAME", help=models.NAMES)
    parser.add_argument(
        "--model-option", type=models.option, action="append", default=[], metavar="KEY=VALUE"
    )
    parser.add_argument("--num-classes", type=int, required=True, metavar="K")
    parser.add_argument("--output", type=Path, default=Path("runs/pictures"), metavar="DIR")
    return parser


if __name__ == "__main__":
    main()

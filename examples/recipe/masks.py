"""Images with masks: a folder of your own, or scenes with scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from recipe.data import Data, digit_pictures
from recipe.requirements import need
from vt_fast.models.metrics import IGNORE

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which trunks are trained on
_SUFFIXES = {".jpg", ".jpeg", ".png"}
Pair = tuple[Tensor, Tensor]  # image (3, H, W) float32, mask (H, W) int64
Transform = Callable[[Image.Image, Any], Pair]


def segmentation(source: str, size: int, num_classes: int | None) -> Data:
    """The images and masks of a folder, or "digits".

    Args:
        source: a folder with train/images, train/masks, val/images and val/masks: images in JPEG or PNG, and
            for each a PNG of the same stem and size whose pixels are classes, 255 for pixels that do not
            count; or "digits" for scenes with scikit-learn's real digits on them.
        size: of the squares that are cut from the training images. Those of `val` stay whole.
        num_classes: of a folder.

    Raises:
        ValueError: there is no such folder, or it has images without masks; no ``num_classes`` for a folder.
    """
    val = _transform()
    if source == "digits":
        train = _transform(_scaled_and_cut(size))  # no mirror image: digits have none
        kept, held_out = digit_pictures()
        return Data(Scenes(*kept, size, 512, train), Scenes(*held_out, size, 128, val), 11)
    if num_classes is None:
        raise ValueError("a folder of masks needs --num-classes")
    root, v2 = Path(source), need("torchvision.transforms.v2")
    train = _transform([*_scaled_and_cut(size), v2.RandomHorizontalFlip()])
    return Data(Masks(root / "train", train), Masks(root / "val", val), num_classes)


class Masks(Dataset[Any]):
    """The pairs in ``root``/images and ``root``/masks."""

    def __init__(self, root: Path, transform: Transform) -> None:
        if not (root / "images").is_dir() or not (root / "masks").is_dir():
            raise ValueError(f"{root} must have the folders images and masks")
        self.images = sorted(path for path in (root / "images").iterdir() if path.suffix.lower() in _SUFFIXES)
        self.masks = [root / "masks" / f"{path.stem}.png" for path in self.images]
        missing = [path for path in self.masks if not path.exists()]
        if missing or not self.images:
            raise ValueError(f"{missing[0]} is missing" if missing else f"{root / 'images'} has no images")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        image = Image.open(self.images[index]).convert("RGB")
        mask = np.array(Image.open(self.masks[index]))
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"{self.masks[index]} must be ({image.height}, {image.width}), one class per pixel, "
                f"got {mask.shape}"
            )
        return self.transform(image, mask)


class Scenes(Dataset[Any]):
    """Squares with four digits each, enlarged and not overlapping, on a dark ground.

    Each scene is drawn from its own seed, so there are ``count`` of them, always the same. Class 0 is the
    ground, class d + 1 the ink of digit d. Where ink is faint, on its rim, no class counts.
    """

    def __init__(self, pictures: Any, labels: Any, size: int, count: int, transform: Transform) -> None:
        self.pictures, self.labels, self.size, self.count = pictures, labels, size, count
        self.transform = transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        generator = np.random.default_rng(index)
        scene = np.zeros((self.size, self.size), np.uint8)
        mask = np.zeros((self.size, self.size), np.int64)
        cell = self.size // 2
        for row in (0, cell):
            for column in (0, cell):
                which = int(generator.integers(len(self.labels)))
                side = int(generator.integers(max(8, cell // 2), cell + 1))
                top, left = (start + int(generator.integers(cell - side + 1)) for start in (row, column))
                place = np.s_[top : top + side, left : left + side]
                ink = np.asarray(Image.fromarray(self.pictures[which]).resize((side, side)))
                scene[place] = ink
                mask[place] = np.where(ink > 127, int(self.labels[which]) + 1, np.where(ink > 63, IGNORE, 0))
        return self.transform(Image.fromarray(scene).convert("RGB"), mask)


def _scaled_and_cut(size: int) -> list[Any]:
    """Image and mask alike: fitted to the square, then by 0.5 to 2, and a square cut out of it."""
    v2, tensors = need("torchvision.transforms.v2"), need("torchvision.tv_tensors")
    return [
        v2.ScaleJitter((size, size), scale_range=(0.5, 2.0)),
        v2.RandomCrop(size, pad_if_needed=True, fill={tensors.Image: 0, tensors.Mask: IGNORE}),
    ]


def _transform(changes: Sequence[Any] = ()) -> Transform:
    """Image and mask alike through ``changes``, then the image to numbers around 0."""
    v2, tensors = need("torchvision.transforms.v2"), need("torchvision.tv_tensors")
    kinds = {tensors.Image: torch.float32, "others": None}
    change = v2.Compose([*changes, v2.ToDtype(kinds, scale=True), v2.Normalize(_MEAN, _STD)])

    def transform(image: Image.Image, mask: Any) -> Pair:
        pair = tensors.Image(image), tensors.Mask(torch.from_numpy(mask.astype(np.int64)))
        changed, classes = change(*pair)
        return changed.as_subclass(Tensor), classes.as_subclass(Tensor)

    return transform

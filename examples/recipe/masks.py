"""Images with masks: your own folder, or digits over photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from recipe.data import Data
from recipe.requirements import need
from vt_fast.models.metrics import IGNORE, default_ignore_index

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which backbones are trained on
_IGNORE_16 = 65535  # pixels to ignore in a mask of 16 bits
_SUFFIXES = {".jpg", ".jpeg", ".png"}
Pair = tuple[Tensor, Tensor]  # image (3, H, W) float32, mask (H, W) int64
Transform = Callable[[Any, Tensor], Pair]  # takes a picture, or a tensor in [0, 1], and a mask


def segmentation(source: str, size: int, num_classes: int | None) -> Data:
    """The images and masks of a folder, or "digits".

    Args:
        source: a folder with train/images, train/masks, val/images and val/masks: images in JPEG or PNG, and
            for each a PNG of the same stem and size whose pixels are classes, 255 for pixels to ignore, and
            with more than 255 classes a PNG of 16 bits with 65535 for those; or "digits" for scikit-learn's
            digits over its photographs.
        size: of the square crops of the training images. Those of `val` are not cropped.
        num_classes: of a folder.

    Raises:
        ValueError: there is no such folder, an image has no mask, or a folder without ``num_classes``.
    """
    val = _Change()
    if source == "digits":
        train = _Change(_scaled_and_cut(size, IGNORE))  # no flips: a mirrored digit is not a digit
        return _digits(size, train, val)
    if num_classes is None:
        raise ValueError("a folder of masks needs --num-classes")
    root, v2 = Path(source), need("torchvision.transforms.v2")
    ignore = default_ignore_index(num_classes)
    train = _Change([*_scaled_and_cut(size, ignore), v2.RandomHorizontalFlip()])
    return Data(Masks(root / "train", train, ignore), Masks(root / "val", val, ignore), num_classes)


def prepared(image: Any) -> Tensor:
    """A picture as a normalised tensor (3, H, W) of its own size, as in evaluation."""
    return _Change()(image, torch.zeros(image.height, image.width, dtype=torch.int64))[0]


class Masks(Dataset[Any]):
    """The pairs in ``root``/images and ``root``/masks."""

    def __init__(self, root: Path, transform: Transform, ignore: int = IGNORE) -> None:
        if not (root / "images").is_dir() or not (root / "masks").is_dir():
            raise ValueError(f"{root} must have the folders images and masks")
        self.images = sorted(path for path in (root / "images").iterdir() if path.suffix.lower() in _SUFFIXES)
        self.masks = [root / "masks" / f"{path.stem}.png" for path in self.images]
        missing = [path for path in self.masks if not path.exists()]
        if missing or not self.images:
            raise ValueError(f"{missing[0]} is missing" if missing else f"{root / 'images'} has no images")
        self.transform, self.ignore = transform, ignore

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
        classes = torch.from_numpy(mask.astype(np.int64))
        return self.transform(image, classes.masked_fill_(classes == _IGNORE_16, self.ignore))


class Changed(Dataset[Any]):
    """Transformed scenes, as pairs."""

    def __init__(self, scenes: Any, transform: Transform) -> None:
        self.scenes, self.transform = scenes, transform

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Pair:
        scene = self.scenes[index]
        return self.transform(scene.image, scene.labels)


def _digits(size: int, train: Transform, val: Transform) -> Data:
    """512 scenes for training and 128 held out, with digits of three to six eighths of their height."""
    common: dict[str, Any] = {"size": (size, size), "heights": (3 * size // 8, 6 * size // 8)}
    scenes = need("demo.scenes").DigitScenes
    kept, held_out = scenes(512, **common), scenes(128, held_out=True, **common)
    return Data(Changed(kept, train), Changed(held_out, val), kept.num_classes)


def _scaled_and_cut(size: int, ignore: int) -> list[Any]:
    """Scale image and mask to the square, jitter the scale by 0.5 to 2, and crop a square."""
    v2, tensors = need("torchvision.transforms.v2"), need("torchvision.tv_tensors")
    return [
        v2.ScaleJitter((size, size), scale_range=(0.5, 2.0)),
        v2.RandomCrop(size, pad_if_needed=True, fill={tensors.Image: 0, tensors.Mask: ignore}),
    ]


class _Change:
    """Applies ``changes`` to image and mask, then normalises the image. Workers can get it by pickle."""

    def __init__(self, changes: Sequence[Any] = ()) -> None:
        v2, tensors = need("torchvision.transforms.v2"), need("torchvision.tv_tensors")
        self.image, self.mask = tensors.Image, tensors.Mask
        kinds = {tensors.Image: torch.float32, "others": None}
        self.change = v2.Compose([*changes, v2.ToDtype(kinds, scale=True), v2.Normalize(_MEAN, _STD)])

    def __call__(self, image: Any, mask: Tensor) -> Pair:
        changed, classes = self.change(self.image(image), self.mask(mask))
        return changed.as_subclass(Tensor), classes.as_subclass(Tensor)

"""Pictures with a label for each pixel: handwritten digits laid over photographs, both real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from vt_fast.demo import digits, pictures

# Ink is blended smoothly; a pixel counts as the digit's where there is more than this of it.
_INKED = 0.5
# A digit's colour is white less up to this much of red, green and blue each.
_TINT = 0.4
# Held-out scenes have the right-hand part of each photograph for a background, the others the left-hand one.
_SPLIT = 0.7


class Scene(NamedTuple):
    """A picture (3, H, W) in [0, 1], and labels (H, W) int64: 0 is the background, 1 + i the i-th digit."""

    image: Tensor
    labels: Tensor


class DigitScenes(Dataset[Scene]):
    """scikit-learn's handwritten digits in random sizes, places and light colours over its two photographs.

    The colour tells a digit from dark parts of the photographs, but not one digit from another. Scene i of a
    seed is always the same. Neither the digits nor the parts of the photographs of held-out scenes occur in
    the others.

    Args:
        count: how many scenes.
        size: (H, W).
        classes: which digits; class 1 + i is the i-th of them, class 0 the background.
        per_scene: how many digits are laid over a photograph; a later one may cover part of an earlier.
        heights: the least and the largest height of a digit in pixels.
        held_out: whether the scenes are for testing.
        seed: of all random choices.

    Attributes:
        num_classes: the background's included.

    Raises:
        ValueError: a digit does not fit, or is none.

    Example:
        >>> scenes = DigitScenes(4, size=(48, 64), classes=(0, 1))
        >>> scenes[0].image.shape, scenes[0].labels.shape, scenes.num_classes
        (torch.Size([3, 48, 64]), torch.Size([48, 64]), 3)
    """

    def __init__(
        self,
        count: int,
        *,
        size: tuple[int, int] = (64, 64),
        classes: Sequence[int] = tuple(range(10)),
        per_scene: int = 2,
        heights: tuple[int, int] = (28, 44),
        held_out: bool = False,
        seed: int = 0,
    ) -> None:
        if not 1 <= heights[0] <= heights[1] <= min(size):
            raise ValueError(f"`heights` must be (least, largest) of 1 to {min(size)}, got {heights}")
        if not classes or any(each not in range(10) for each in classes):
            raise ValueError(f"`classes` must be digits, got {tuple(classes)}")
        self.count, self.size, self.classes = count, size, tuple(classes)
        self.per_scene, self.heights, self.seed, self.held_out = per_scene, heights, seed, held_out
        self.num_classes = 1 + len(self.classes)
        data = digits.load()
        drawn, labels = (data.test, data.test_labels) if held_out else (data.train, data.train_labels)
        self._ink = [digits.ink(drawn[labels == each]) for each in self.classes]
        self._photographs = [self._part(picture.pixels) for picture in pictures.samples()]
        for photograph in self._photographs:
            if photograph.shape[1] < size[0] or photograph.shape[2] < size[1]:
                raise ValueError(f"`size` must be at most {tuple(photograph.shape[1:])}, got {size}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`, which must be in 0 to len - 1."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        random = np.random.default_rng((self.seed, int(self.held_out), index))
        photograph = self._photographs[random.integers(len(self._photographs))]
        height, width = self.size
        top = int(random.integers(photograph.shape[1] - height + 1))
        left = int(random.integers(photograph.shape[2] - width + 1))
        image = photograph[:, top : top + height, left : left + width].clone()
        labels = torch.zeros(self.size, dtype=torch.int64)
        for _ in range(self.per_scene):
            self._lay(image, labels, random)
        return Scene(image, labels)

    def _lay(self, image: Tensor, labels: Tensor, random: np.random.Generator) -> None:
        """Lay one digit over the picture, in place."""
        number = int(random.integers(len(self.classes)))
        side = int(random.integers(self.heights[0], self.heights[1] + 1))
        ink = self._ink[number][random.integers(len(self._ink[number]))]
        ink = F.interpolate(ink[None], size=(side, side), mode="bicubic", align_corners=False)[0, 0].clamp(
            0, 1
        )
        colour = 1 - _TINT * torch.from_numpy(random.random(3, dtype=np.float32))
        top, left = (int(random.integers(extent - side + 1)) for extent in self.size)
        where = (..., slice(top, top + side), slice(left, left + side))
        image[where] = torch.lerp(image[where], colour[:, None, None], ink)
        labels[where] = torch.where(ink > _INKED, 1 + number, labels[where])

    def _part(self, photograph: Tensor) -> Tensor:
        split = int(_SPLIT * photograph.shape[2])
        return photograph[..., split:] if self.held_out else photograph[..., :split]


def batch(scenes: DigitScenes, indices: Sequence[int]) -> Scene:
    """Several scenes as one: images (B, 3, H, W) and labels (B, H, W)."""
    images, labels = zip(*(scenes[index] for index in indices), strict=True)
    return Scene(torch.stack(images), torch.stack(labels))

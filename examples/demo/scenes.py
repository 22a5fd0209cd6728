"""Images with a label for each pixel: real handwritten digits over real photographs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from demo import digits, pictures

# Ink is blended smoothly; a pixel with more ink than this is labelled as the digit.
_INKED = 0.5
# A digit's colour is white minus up to this much of red, green and blue each.
_TINT = 0.4
# Backgrounds of held-out scenes come from the right-hand part of each photograph, the others from the left.
_SPLIT = 0.7


class Scene(NamedTuple):
    """An image (3, H, W) in [0, 1], and labels (H, W) int64: 0 is background, 1 + i the i-th digit."""

    image: Tensor
    labels: Tensor


class DigitScenes(Dataset[Scene]):
    """scikit-learn's handwritten digits in random size, position and light colour over its two photographs.

    Colour distinguishes a digit from dark parts of the photographs, but not from other digits. Scene i of a
    seed is always the same. Held-out scenes share no digit and no part of a photograph with the others.

    Args:
        count: number of scenes.
        size: (H, W).
        classes: the digits to use; class 1 + i is the i-th of them, class 0 the background.
        per_scene: number of digits in a scene; a later one may cover part of an earlier one.
        heights: the smallest and the largest height of a digit in pixels.
        held_out: whether the scenes are for testing.
        seed: of all random choices.

    Attributes:
        num_classes: number of classes, background included.

    Raises:
        ValueError: a digit does not fit, or a class is not a digit.

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
        """Draw one digit over the image, in place."""
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

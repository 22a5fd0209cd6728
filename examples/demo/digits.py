"""scikit-learn's 1,797 handwritten digits in a fixed split."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

_SEED = 0
_INK = 16.0  # the largest pixel value in this data set
MEAN = 0.3  # of all pixels, to one digit


class Digits(NamedTuple):
    """Images (n, 1, 8, 8), shifted to a mean near zero, and labels (n,), for training and held out."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load() -> Digits:
    """The digits, with a quarter of each class held out."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / _INK - MEAN
    labels = torch.from_numpy(data.target)
    indices = torch.arange(len(labels)).numpy()
    kept, held_out = map(
        torch.from_numpy, train_test_split(indices, test_size=0.25, stratify=data.target, random_state=_SEED)
    )
    return Digits(images[kept], labels[kept], images[held_out], labels[held_out])


def ink(images: Tensor) -> Tensor:
    """Undo the shift: pixel values in [0, 1]."""
    return images + MEAN

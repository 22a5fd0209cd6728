"""Images with labels: your own folder, or scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipe.distributed import Group
from recipe.randomness import Seeded
from recipe.recipes import Recipe
from recipe.requirements import need
from recipe.sampler import Shard, StepSampler

_CROP = 0.875  # centre crop in evaluation, relative to the shorter side: 224 of 256


class Data(NamedTuple):
    """Two map-style datasets of pairs (image (3, H, W), target), and the number of classes."""

    train: Any
    val: Any
    num_classes: int


class Loaders(NamedTuple):
    """The data loaders of a process."""

    sampler: StepSampler
    train: DataLoader[Any]
    val: DataLoader[Any]


class Pictures(Dataset[Any]):
    """Transformed pictures in memory, (n, H, W) uint8, with labels (n,)."""

    def __init__(self, pictures: Any, labels: Any, transform: Callable[[Any], Any]) -> None:
        self.pictures, self.labels, self.transform = pictures, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = Image.fromarray(self.pictures[index]).convert("RGB")
        return self.transform(picture), int(self.labels[index])


def classification(source: str, size: int, recipe: Recipe) -> Data:
    """The images of a folder with one subfolder per class in `train` and in `val`, or "digits".

    Args:
        source: the folder, or "digits" for scikit-learn's 1,797 digits with a quarter of each class held out.
        size: of the images that the model gets.
        recipe: gives the AutoAugment policy.

    Raises:
        ValueError: there is no such folder, or `val` and `train` have different classes.
    """
    create = need("timm.data").create_transform
    common = {"is_training": True, "color_jitter": None, "auto_augment": recipe.auto_augment or None}
    if source == "digits":
        # No flips and no small crops: they could turn one digit into another.
        train = create(size, scale=(0.7, 1.0), hflip=0.0, **common)
        return _digits(train, create(size, crop_pct=1.0))
    root = Path(source)
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise ValueError(f"`data` must be digits or a folder with train and val in it, got {source}")
    folder = need("torchvision.datasets").ImageFolder
    kept = folder(root / "train", create(size, **common))
    held_out = folder(root / "val", create(size, crop_pct=_CROP))
    if kept.classes != held_out.classes:
        odd = sorted(set(kept.classes) ^ set(held_out.classes))
        raise ValueError(f"train and val in {source} must have the same classes, but differ in {odd[:5]}")
    return Data(kept, held_out, len(kept.classes))


def _digits(train: Callable[[Any], Any], val: Callable[[Any], Any]) -> Data:
    digits = need("demo.digits")
    found = digits.load()

    def pictures(shifted: Tensor) -> Any:
        """The demo's (n, 1, 8, 8) as a NumPy array (n, 8, 8) uint8."""
        return (digits.ink(shifted)[:, 0] * 255).round().byte().numpy()

    kept = Pictures(pictures(found.train), found.train_labels, train)
    return Data(kept, Pictures(pictures(found.test), found.test_labels, val), 10)


def loaders(
    data: Data, group: Group, *, batch: int, passes: int, val_batch: int, workers: int, seed: int
) -> Loaders:
    """Loaders whose samples depend on seed, epoch and index alone, not on the workers."""
    sampler = StepSampler(
        len(data.train), batch=batch, passes=passes, rank=group.rank, size=group.size, seed=seed
    )
    common: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": group.device.type == "cuda",
        "persistent_workers": workers > 0,
        # A loader draws a seed for its workers, which must not advance the generator of dropout.
        "generator": torch.Generator(),
    }
    shard = Shard(len(data.val), rank=group.rank, size=group.size)
    return Loaders(
        sampler,
        DataLoader(Seeded(data.train, seed), batch_sampler=sampler, **common),
        DataLoader(Seeded(data.val, seed), sampler=shard, batch_size=val_batch, **common),
    )

"""Data loading workers that are started afresh, as on macOS (spawn) and in Python 3.14 (forkserver)."""

import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from recipe import data, masks, recipes
from recipe.randomness import Seeded
from recipe.requirements import need
from tests._support.in_worker import InWorker
from vt_fast.models import segmentation_loss


@pytest.fixture
def folders(tmp_path):
    """Folders of 4 images for classification and of 4 with masks, one of which has 16 bits."""
    image, numbers = need("PIL.Image"), np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("classes/{}/a", "classes/{}/b", "scenes/{}/images", "scenes/{}/masks"):
            (tmp_path / name.format(part)).mkdir(parents=True)
        for number in range(4):
            pixels = image.fromarray(numbers.integers(0, 255, (30, 26, 3), dtype=np.uint8))
            pixels.save(tmp_path / "classes" / part / "ab"[number % 2] / f"{number}.png")
            pixels.save(tmp_path / "scenes" / part / "images" / f"{number}.png")
            labels = numbers.integers(0, 300, (30, 26)).astype(np.uint16)
            labels[:3] = 65535
            image.fromarray(labels).save(tmp_path / "scenes" / part / "masks" / f"{number}.png")
    return tmp_path


def sources(folders):
    recipe = recipes.Recipe(auto_augment="rand-m9-mstd0.5")
    return [
        data.classification("digits", 16, recipe),
        data.classification(str(folders / "classes"), 16, recipe),
        masks.segmentation("digits", 16, None),
        masks.segmentation(str(folders / "scenes"), 16, 300),
    ]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_give_what_one_process_gives(libraries, folders, method):
    """Training and evaluation data of every kind, seeded as the training scripts do."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform has no {method}")
    parts = [part for found in sources(folders) for part in (found.train, found.val)]
    every = Seeded(ConcatDataset([Subset(part, range(2)) for part in parts]), seed=5)
    draws = [(epoch, index) for epoch in range(2) for index in range(len(every))]
    loader = DataLoader(
        InWorker(every), sampler=draws, batch_size=None, num_workers=1, multiprocessing_context=method
    )
    for (epoch, index), (image, target) in zip(draws, loader, strict=True):
        expected, its_target = every[epoch, index]
        assert torch.equal(image, expected)
        assert torch.equal(torch.as_tensor(target), torch.as_tensor(its_target))


def test_16_bit_masks(libraries, folders):
    """Classes of 255 and above are kept; 65535, and what a crop adds, is ignored."""
    found = sources(folders)[-1]
    mask = found.val[0][1]
    assert (mask[:3] == -1).all()
    assert mask[3:].min() >= 0
    assert mask.max() > 255
    padded = torch.stack([found.train[0][1] for _ in range(20)])
    assert (padded == -1).any()
    assert not ((padded == 255).sum((1, 2)) > 40).any(), "padding is no class"
    loss = segmentation_loss(torch.zeros(20, 300, 16, 16, requires_grad=True), padded)
    assert loss.isfinite()

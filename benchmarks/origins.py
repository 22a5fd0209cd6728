"""Which model each shape of the registry comes from, and how large the op is there.

Names only, no torch. A layer whose heads look at all channels, as attention pooling does once its key
projection is folded into the queries, has a token for each head and query.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from benchmarks.cases import GPU_SHAPES, GPU_STACK_SHAPE, SHAPES, STACK_SHAPE, Shape


class Origin(NamedTuple):
    """A layer of a model: the ops that it needs, and its shape. ``dtype``: None for any."""

    model: str
    shape: Shape
    ops: tuple[str, ...]
    dtype: str | None = None


_ALL = ("tokenize", "project", "project_tokenize")
_POOLS = ("tokenize",)


def _stage(depths: str, batch: int, channels: int) -> Origin:
    return Origin(f"VT-ResNet-{depths}, last stage at 224 x 224", Shape(batch, 14, 14, channels, 16), _ALL)


def _level(level: int, batch: int) -> Origin:
    height, width = -(-800 // 2**level), -(-1216 // 2**level)
    return Origin(f"VT-FPN, level P{level} at 800 x 1216", Shape(batch, height, width, 256, 8), _ALL)


ORIGINS = (
    _stage("18/34", 32, 256),
    _stage("50/101", 32, 1024),
    _stage("18/34", 256, 256),
    _stage("50/101", 256, 1024),
    *(_level(level, 1) for level in (2, 3, 4, 5)),
    _level(2, 8),
    Origin("OCRNet, gather, Cityscapes at 1024 x 2048", Shape(2, 256, 512, 512, 19), _POOLS),
    Origin("OCRNet, gather, ADE20K at 520 x 520", Shape(16, 130, 130, 512, 150), _POOLS),
    Origin("EMANet, one step", Shape(16, 65, 65, 512, 64), _POOLS),
    Origin("NetVLAD, 1024 clusters", Shape(6, 64, 64, 256, 1024), _POOLS, "fp32"),
    Origin("ABMIL, a bag of 100 000 patches", Shape(1, 250, 400, 512, 1), _POOLS, "fp32"),
    Origin("pooling 100 000 features of UNI2", Shape(1, 250, 400, 1536, 8), _POOLS),
    Origin("Perceiver at 224 x 224", Shape(8, 224, 224, 512, 512), _POOLS),
    Origin("OCRNet, object attention, Cityscapes", Shape(2, 256, 512, 512, 19), ("project",)),
    Origin("SigLIP So400m, attention pooling, 16 heads", Shape(256, 27, 27, 1152, 16), _POOLS),
    Origin("CLIP RN50x64, attention pooling, 64 heads", Shape(64, 14, 14, 4096, 64), _POOLS),
    Origin("V-JEPA 2 ViT-g 384, attentive probe, 16 heads", Shape(16, 64, 72, 1408, 16), _POOLS),
    Origin("SAM, tokens to image, 64 prompts, 8 heads", Shape(64, 64, 64, 256, 56), _POOLS),
)

# Shapes that come from no model, and what they are there for.
PURPOSES = {
    Shape(8, 56, 56, 512, 16): "between a cache and memory",
    Shape(1, 512, 512, 1024, 16): "far larger than any cache",
    Shape(8, 28, 28, 2048, 64): "many tokens: bound by arithmetic",
    Shape(64, 28, 28, 512, 16): "the second stage of a ResNet-50 at 224 x 224",
    Shape(2, 1024, 1024, 256, 8): "a million pixels",
    Shape(1, 1024, 1024, 1024, 16): "a million wide pixels",
    Shape(32, 56, 56, 256, 32): "the first stage of a ResNet-50 at 224 x 224",
    Shape(64, 14, 14, 768, 64): "channels that are no power of two",
    Shape(64, 7, 7, 2048, 64): "rows of pixels that are aligned to nothing",
}

# All that can be asked for by name.
REGISTRY = tuple(
    dict.fromkeys([*SHAPES, *GPU_SHAPES, STACK_SHAPE, GPU_STACK_SHAPE, *(each.shape for each in ORIGINS)])
)


def origin(shape: Shape) -> str | None:
    """The models that a shape comes from, or what it is there for; None for a shape that is not registered.

    Example:
        >>> origin(Shape(8, 200, 304, 256, 8))
        'VT-FPN, level P2 at 800 x 1216'
        >>> origin(Shape(64, 14, 14, 768, 64))
        'channels that are no power of two'
    """
    models = [each.model for each in ORIGINS if each.shape == shape]
    return "; ".join(models) or PURPOSES.get(shape)


def by_label(labels: Collection[str]) -> tuple[Shape, ...]:
    """The registered shapes with these labels, in the registry's order; one for each label.

    Example:
        >>> by_label(["32x196x256x16"])
        (Shape(batch=32, height=14, width=14, channels=256, tokens=16),)
    """
    found = {shape.label: shape for shape in reversed(REGISTRY) if shape.label in labels}
    return tuple(shape for shape in REGISTRY if found.get(shape.label) == shape)

"""The clustering tokenizer of the paper's appendix: k-means centroids serve as the filters."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vt_fast.reference._checks import check_count, check_shape
from vt_fast.reference.linear import Projection
from vt_fast.reference.tokenizers import filter_tokenizer

DEFAULT_ITERATIONS = 10


def initial_centroids(feature_map: Tensor, num_tokens: int) -> Tensor:
    """Take the first centroids from a downsampled map.

    The paper says "downsampled" and no more. Here the map is averaged over the cells of the near-square grid
    h x w with h = floor(sqrt(L)), w = ceil(L / h), so that every pixel counts; the first L cells, row-major,
    are the centroids.

    Args:
        feature_map: (B, C, H, W).
        num_tokens: L.

    Returns:
        centroids (B, L, C), not normalised.

    Raises:
        ValueError: the map is not 4-D, or `num_tokens` is below 1.

    Example:
        >>> feature_map = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
        >>> initial_centroids(feature_map, 2).tolist()  # a grid of 1 x 2
        [[[3.0], [5.0]]]
    """
    check_shape("feature_map", feature_map, B=None, C=None, H=None, W=None)
    check_count("num_tokens", num_tokens)
    height = math.isqrt(num_tokens)
    width = -(-num_tokens // height)
    cells = F.adaptive_avg_pool2d(feature_map, (height, width))
    return cells.flatten(2).transpose(1, 2)[:, :num_tokens]


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    # There is no autocast for some types of device, such as meta. A compiler, which torch 2.11 cannot ask for
    # it, does not run on those.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


def _unit(vectors: Tensor) -> Tensor:
    # A zero vector has no direction and stays zero. Any other, however short, gets unit length, which
    # clamping the norm to a small number would not give.
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norm.masked_fill(norm == 0, 1)


def kmeans(x: Tensor, centroids: Tensor, *, iterations: int) -> Tensor:
    """Spherical k-means: move the centroids to the directions of the pixels nearest to them.

    Pixels and centroids are scaled to unit length, where the nearest centroid is the one with the largest dot
    product. Then, `iterations` times: assign each pixel to its nearest centroid, take the mean of each
    cluster's pixels, scale it to unit length.

    Where the paper's listing fails or is silent:

    - A pixel equally near to several centroids counts once, for the lowest index.
    - A cluster whose mean has no direction keeps its centroid: one without pixels, or whose pixels cancel.
    - A pixel of zeros pulls in no direction; a centroid of zeros stays zero until pixels move it.
    - Assignments have no gradient and the centroids are taken as constants: nothing flows back through them.
    - 16-bit maps are clustered in float32, under autocast too.

    Args:
        x: (B, N, C) pixels.
        centroids: (B, L, C) where to start, of any length.
        iterations: how often to move them; 0 only normalises.

    Returns:
        centroids (B, L, C) of unit length, in the dtype of ``x``, without gradient.

    Raises:
        ValueError: the shapes do not fit, or `iterations` is negative.

    Example:
        >>> x = torch.tensor([[[2.0, 0.0], [5.0, 0.0], [0.0, 3.0]]])
        >>> kmeans(x, torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]), iterations=1).tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """
    check_shape("x", x, B=None, N=None, C=None)
    check_shape("centroids", centroids, B=x.shape[0], L=None, C=x.shape[2])
    check_count("iterations", iterations, least=0)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad(), _without_autocast(x.device.type):
        pixels = _unit(x.to(dtype))
        units = _unit(centroids.to(dtype))
        for _ in range(iterations):
            nearest = (pixels @ units.transpose(1, 2)).argmax(dim=2)
            members = F.one_hot(nearest, units.shape[1]).to(dtype)
            counts = members.sum(dim=1).clamp(min=1).unsqueeze(2)
            means = members.transpose(1, 2) @ pixels / counts
            stays = (means == 0).all(dim=2, keepdim=True)
            units = torch.where(stays, units, _unit(means))
        return units.to(x.dtype)


def clustering_tokenizer(
    feature_map: Tensor,
    num_tokens: int,
    *,
    iterations: int = DEFAULT_ITERATIONS,
    scale: float = 1.0,
    value: Projection | None = None,
    token: Projection | None = None,
) -> Tensor:
    """Clustering tokenizer (appendix): equation 1 with the k-means centroids of the pixels for W_A.

    Three choices where the paper is silent: `iterations` is 10 by default; no gradient passes through the
    centroids, while the pixels get theirs through the softmax and the product; and the pixels of the final
    softmax and product are the raw ones: only the centroids are of unit length.

    Args:
        feature_map: (B, C, H, W).
        num_tokens: L.
        iterations: of `kmeans`.
        scale: multiplies the logits.
        value: C -> Cv on the pixels.
        token: Cv -> CT on the tokens.

    Returns:
        tokens (B, L, CT), CT = C without projections.

    Raises:
        ValueError: the shapes do not fit, or a count is out of range.

    Example:
        >>> feature_map = torch.zeros(1, 2, 1, 4)
        >>> feature_map[0, 0, 0, :2] = 9.0  # two pixels of each of two kinds
        >>> feature_map[0, 1, 0, 2:] = 9.0
        >>> clustering_tokenizer(feature_map, 2, scale=50.0).tolist()
        [[[9.0, 0.0], [0.0, 9.0]]]
    """
    centroids = initial_centroids(feature_map, num_tokens)
    x = feature_map.flatten(2).transpose(1, 2)
    filters = kmeans(x, centroids, iterations=iterations)
    return filter_tokenizer(x, filters, scale=scale, value=value, token=token)

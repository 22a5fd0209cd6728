"""Clustering tokens on photographs: what each token looks at, and the segments that they cut."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vt_fast.demo.features import pixel_features
from vt_fast.nn import ClusteringTokenizer

NUM_TOKENS = 8


class Clusters(NamedTuple):
    """Eight tokens of one picture."""

    attention: Tensor
    """(L, H, W): what each token looks at; each map sums to 1."""
    segments: Tensor
    """(H, W): the token whose centroid is nearest to the pixel."""
    colours: Tensor
    """(L, 3): the mean colour under each token's attention, which is what a token pools."""


@torch.no_grad()
def cluster(pixels: Tensor) -> Clusters:
    """Tokens of a picture (3, H, W) in [0, 1], largest segment first.

    Example:
        >>> clusters = cluster(torch.rand(3, 24, 32))
        >>> clusters.attention.shape, clusters.segments.shape, clusters.colours.shape
        (torch.Size([8, 24, 32]), torch.Size([24, 32]), torch.Size([8, 3]))
    """
    features = pixel_features(pixels)
    tokenizer = ClusteringTokenizer(features.shape[1], NUM_TOKENS)
    attention = tokenizer.attention_maps(features)[0]
    centroids = tokenizer.centroids(features)[0]
    nearest = torch.einsum("lc,chw->lhw", centroids, features[0]).argmax(0)
    order = torch.bincount(nearest.flatten(), minlength=NUM_TOKENS).argsort(descending=True, stable=True)
    rank = order.argsort()
    attention = attention[order]
    colours = torch.einsum("lhw,chw->lc", attention, pixels)
    return Clusters(attention, rank[nearest], colours)

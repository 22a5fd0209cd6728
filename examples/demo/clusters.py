"""Clustering tokens on photographs: the attention of each token, and the segments of the picture."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from demo.features import pixel_features
from vt_fast.nn import ClusteringTokenizer

NUM_TOKENS = 8


class Clusters(NamedTuple):
    """The eight tokens of one picture."""

    attention: Tensor
    """(L, H, W): each token's attention, which sums to 1."""
    segments: Tensor
    """(H, W): index of the token whose centroid is nearest to the pixel."""
    colours: Tensor
    """(L, 3): the mean colour under each token's attention."""


@torch.no_grad()
def cluster(pixels: Tensor) -> Clusters:
    """The tokens of a picture (3, H, W) in [0, 1], the largest segment first.

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

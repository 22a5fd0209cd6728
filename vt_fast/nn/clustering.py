"""The clustering tokenizer of the paper's appendix: centroids of the pixels in place of learned filters."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.layout import as_pixels
from vt_fast.nn.base import refuse_pixel_shards
from vt_fast.nn.options import TokenizerOptions, spelled_out
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.onnx import algebra
from vt_fast.precision import compute_dtype, without_autocast


class ClusteringTokenizer(Tokenizer):
    """Eq. 1 with the centroids of a spherical k-means for filters: T = softmax_N(X U^T)^T X.

    The paper states neither the number of iterations, nor whether gradients pass through the centroids, nor
    whether the last product has raw or normalised pixels. Here the centroids U are of unit length and carry
    no gradient; the pixels of the softmax and of the product are the raw ones, and carry theirs. The k-means
    runs in plain PyTorch and reads the map once per iteration, so a stack cannot fuse it.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        iterations: of the k-means.
        scale: multiplies the logits. 1 as in the paper: the logits are lengths of pixels times cosines.
        **options: `value_groups`, `token_linear`, `bias`, `backend`, `device`, `dtype`: see
            :class:`Tokenizer`.

    Example:
        >>> ClusteringTokenizer(64, num_tokens=8)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 8, 64])
    """

    @spelled_out(Tokenizer.__init__, TokenizerOptions)
    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        iterations: int = 10,
        scale: float = 1.0,
        **options: Unpack[TokenizerOptions],
    ) -> None:
        super().__init__(channels, num_tokens, token_channels, position=None, **options)
        checks.counts(iterations=iterations)
        checks.number("scale", scale)
        self.iterations, self.scale = iterations, scale

    def why_not_fusable(self) -> str | None:
        """The k-means needs the map that the projector would not write."""
        return "clusters the written map"

    def centroids(self, x: Tensor) -> Tensor:
        """The unit-length centroids (B, L, C) of the map (B, C, H, W), without gradient."""
        checks.map_size(x)
        refuse_pixel_shards(x, "where they are clustered")
        x = x.detach()
        return kmeans(as_pixels(x), initial_centroids(x, self.num_tokens), self.iterations)

    def forward(  # type: ignore[override]  # it is never fused with a projector
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, L, CT) of a feature map (B, C, H, W).

        Raises:
            ValueError: `x` has a wrong shape, or there is a mask.
        """
        self._refuse_any_mask(mask)
        return super().forward(x, tokens)  # type: ignore[return-value]

    def attention_maps(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """See :meth:`Tokenizer.attention_maps`. There is no mask."""
        self._refuse_any_mask(mask)
        return super().attention_maps(x, tokens)

    def _refuse_any_mask(self, mask: Tensor | None) -> None:
        if mask is not None:
            raise ValueError("`mask` must be None with a ClusteringTokenizer, which clusters all pixels")

    def _queries_for(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return self.centroids(x) * self.scale

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        from vt_fast.reference.clustering import initial_centroids, kmeans
        from vt_fast.reference.tokenizers import spatial_attention

        checks.map_size(x)
        pixels, start = as_pixels(x), initial_centroids(x, self.num_tokens)
        return spatial_attention(pixels, kmeans(pixels, start, iterations=self.iterations), scale=self.scale)


def initial_centroids(x: Tensor, num_tokens: int) -> Tensor:
    """The first centroids (B, L, C): means over the cells of a near-square grid, row-major, the first L."""
    height = math.isqrt(num_tokens)
    width = -(-num_tokens // height)
    if algebra.exporting():  # which knows adaptive pooling for fixed sizes only
        cells = _mean_matrix(x.shape[2], height, x) @ x @ _mean_matrix(x.shape[3], width, x).transpose(0, 1)
    else:
        cells = F.adaptive_avg_pool2d(x, (height, width))
    return cells.flatten(2).transpose(1, 2)[:, :num_tokens]


def _mean_matrix(source: int, target: int, like: Tensor) -> Tensor:
    """Adaptive average pooling of one side as a matrix (target, source)."""
    cell, at = torch.arange(target, device=like.device), torch.arange(source, device=like.device)
    begin, end = cell * source // target, ((cell + 1) * source + target - 1) // target
    inside = (at >= begin[:, None]) & (at < end[:, None])
    return inside.to(like.dtype) / (end - begin)[:, None].to(like.dtype)


def kmeans(pixels: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Spherical k-means: move the centroids to the directions of the pixels nearest to them.

    A pixel equally near to several centroids belongs to the one of lowest index. A cluster keeps its centroid
    where its mean has no direction: without pixels, or where they cancel. 16-bit maps are clustered in
    float32, under autocast too.

    Args:
        pixels: (B, N, C).
        centroids: (B, L, C) to start from, of any length.
        iterations: how often to move them.

    Returns:
        centroids (B, L, C) of unit length, in the dtype of the pixels, without gradient.
    """
    dtype = compute_dtype(pixels.dtype)
    with torch.no_grad(), without_autocast(pixels.device.type):
        directions, units = _unit(pixels.to(dtype)), _unit(centroids.to(dtype))
        for _ in range(iterations):
            nearest = (directions @ units.transpose(1, 2)).argmax(2)
            members = F.one_hot(nearest, units.shape[1]).to(dtype)
            sizes = members.sum(1).clamp(min=1).unsqueeze(2)
            means = members.transpose(1, 2) @ directions / sizes
            units = torch.where((means == 0).all(2, keepdim=True), units, _unit(means))
        return units.to(pixels.dtype)


def _unit(vectors: Tensor) -> Tensor:
    # A vector of zeros has no direction and stays zero. Every other one, however short, gets unit length,
    # which clamping the norm to a small number would not give.
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norm.masked_fill(norm == 0, 1)

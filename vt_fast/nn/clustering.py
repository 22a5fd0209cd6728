"""The clustering tokenizer of the paper's appendix: centroids of the pixels in place of learned filters."""

from __future__ import annotations

from torch import Tensor

from vt_fast.layout import as_pixels
from vt_fast.nn.base import check_positive, map_size
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.reference.clustering import DEFAULT_ITERATIONS, initial_centroids, kmeans
from vt_fast.reference.tokenizers import spatial_attention


class ClusteringTokenizer(Tokenizer):
    """Eq. 1 with the centroids of a spherical k-means for filters: T = softmax_N(X U^T)^T X.

    The centroids U are of unit length and carry no gradient; the pixels of the softmax and of the product
    are the raw ones, and carry theirs. The k-means runs in plain PyTorch; it reads the map once per
    iteration, so a stack cannot fuse it.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        iterations: of the k-means; the paper does not say how many.
        scale: multiplies the logits. 1 as in the paper: the logits are lengths of pixels times cosines.
        value_groups, token_linear, bias, backend: see :class:`Tokenizer`.

    Example:
        >>> import torch
        >>> ClusteringTokenizer(64, num_tokens=8)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 8, 64])
    """

    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        iterations: int = DEFAULT_ITERATIONS,
        scale: float = 1.0,
        value_groups: int | None = None,
        token_linear: bool | None = None,
        bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            channels,
            num_tokens,
            token_channels,
            value_groups=value_groups,
            token_linear=token_linear,
            bias=bias,
            backend=backend,
        )
        check_positive(iterations=iterations)
        self.iterations, self.scale = iterations, scale

    @property
    def unfusable(self) -> str | None:
        """A k-means needs the written map."""
        return "clusters the written map"

    def centroids(self, x: Tensor) -> Tensor:
        """The unit-length centroids (B, L, C) of the map (B, C, H, W), without gradient."""
        map_size(x)
        x = x.detach()
        return kmeans(as_pixels(x), initial_centroids(x, self.num_tokens), iterations=self.iterations)

    def forward(self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, CT) of a feature map (B, C, H, W).

        Raises:
            ValueError: `x` has a wrong shape, or there is a mask, which the k-means has no place for.
        """
        if mask is not None:
            raise ValueError("`mask` must be None with a ClusteringTokenizer, which clusters all pixels")
        return super().forward(x, tokens)

    def _bank(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return self.centroids(x) * self.scale

    def _reference_attention(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return spatial_attention(as_pixels(x), self.centroids(x), scale=self.scale)

"""A2-Net's double attention (Chen et al., arXiv 1810.11579), by the two ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from vt_fast import checks, functional
from vt_fast.layout import as_pixels, pixel_count
from vt_fast.nn.base import REFERENCE, BackendModule, check_map, like_map
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.options import Factory
from vt_fast.nn.traced import is_traced, leaf


class DoubleAttention(BackendModule):
    """Gather features into a few vectors, then give each pixel a mixture of them (section 3).

    Y = X + W_out (phi(X) softmax_N(theta(X))^T softmax_n(rho(X))). The first softmax is over the N pixels,
    the second over the n vectors. Many public versions take both over the pixels.

    theta has no bias: it would add the same to all pixels, which the softmax cancels. The ops take theta and
    rho, so that no map of logits is written. Where the map has n pixels or more, phi and W_out act on the n
    vectors in their place: the weights of each vector, and of each pixel, sum to 1. At initialisation W_out
    is zero.

    Args:
        channels: C of the map.
        features: m, channels of the gathered features; by default C / 4.
        num_vectors: n; by default C / 4.
        backend: see :func:`vt_fast.nn.set_backend`. "reference" projects the pixels.
        device, dtype: of the parameters.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> DoubleAttention(64)(torch.zeros(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """

    def __init__(
        self,
        channels: int,
        features: int | None = None,
        num_vectors: int | None = None,
        *,
        backend: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(backend)
        features = channels // 4 if features is None else features
        num_vectors = channels // 4 if num_vectors is None else num_vectors
        checks.counts(channels=channels, features=features, num_vectors=num_vectors)
        factory: Factory = {"device": device, "dtype": dtype}
        self.channels = channels
        self.phi = GroupedLinear(channels, features, **factory)
        self.theta = GroupedLinear(channels, num_vectors, bias=False, **factory)
        self.rho = GroupedLinear(channels, num_vectors, **factory)
        self.out = GroupedLinear(features, channels, gain=0, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) or (B, C, H, W) -> the same shape."""
        if is_traced(x):
            traced: Tensor = leaf(self, x)
            return traced
        check_map(x, self, self.channels)
        if self.backend == REFERENCE:
            from vt_fast.reference.attention import double_attention

            layers = (projection_of(layer) for layer in (self.phi, self.theta, self.rho, self.out))
            return like_map(double_attention(as_pixels(x), *layers), x)
        op: dict[str, Any] = {"backend": self.backend}
        queries, keys, token_bias = self.theta.weight, self.rho.weight, self.rho.bias
        if pixel_count(x) < keys.shape[0]:
            vectors = functional.tokenize(x, queries, values=project_map(x, self.phi), **op)
            return x + project_map(
                functional.project(x, keys, vectors, token_bias=token_bias, **op), self.out
            )
        values = self.out(self.phi(functional.tokenize(x, queries, **op)))
        return functional.project(x, keys, values, token_bias=token_bias, residual=x, **op)


def project_map(x: Tensor, layer: GroupedLinear) -> Tensor:
    """The layer on each pixel of a map (B, N, C) or (B, C, H, W)."""
    found: Tensor = layer(x, channels_first=x.dim() == 4)
    return found

"""The pooling tokenizer of the paper's ablation: the map resized to L pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vt_fast.nn.base import REFERENCE, map_size
from vt_fast.nn.linear import projection_of
from vt_fast.nn.tokenizer import Tokenizer
from vt_fast.reference.position import resize_matrix
from vt_fast.reference.tokenizers import pooling_tokenizer


class PoolingTokenizer(Tokenizer):
    """T = the map resized bilinearly to L pixels, without antialiasing; no softmax, and nothing learned.

    The value convolution acts on the resized map: the weights of a bilinear resize sum to 1.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        grid: (h, w) with h w = L; by default the divisors of L nearest to a square, h <= w.
        value_groups, token_linear, bias, backend: see :class:`Tokenizer`.

    Raises:
        ValueError: the grid does not hold `num_tokens` pixels.

    Example:
        >>> PoolingTokenizer(64, num_tokens=16)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 16, 64])
    """

    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        grid: tuple[int, int] | None = None,
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
        if grid is None:
            height = next(side for side in range(math.isqrt(num_tokens), 0, -1) if num_tokens % side == 0)
            grid = (height, num_tokens // height)
        if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != num_tokens:
            raise ValueError(f"`grid` must be (h, w) with h * w = num_tokens = {num_tokens}, got {grid}")
        self.grid = grid

    @property
    def unfusable(self) -> str | None:
        """A resize is no softmax over the pixels."""
        return "resizes the written map"

    def forward(self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, CT), row-major over the grid, of a feature map (B, C, H, W).

        Raises:
            ValueError: `x` has a wrong shape, or there is a mask, which a resize cannot follow.
        """
        self._check(x, tokens)
        map_size(x)
        if mask is not None:
            raise ValueError("`mask` must be None with a PoolingTokenizer, whose weights are fixed")
        if self.backend == REFERENCE:
            value, token = projection_of(self.value), projection_of(self.token)
            return pooling_tokenizer(x, self.grid, value=value, token=token)
        resized = F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False)
        return self.finish(resized.flatten(2).transpose(1, 2))

    def attention_maps(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The weights of the resize, the same for every sample: (B, L, H, W)."""
        self._check(x, tokens)
        height, width = map_size(x)
        rows = resize_matrix(height, self.grid[0], x.dtype, x.device)
        columns = resize_matrix(width, self.grid[1], x.dtype, x.device)
        weights = torch.einsum("sh,tw->sthw", rows, columns).flatten(0, 1)
        return weights.expand(x.shape[0], -1, -1, -1)

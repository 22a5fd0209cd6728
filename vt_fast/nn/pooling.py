"""The pooling tokenizer of the paper's ablation: the map resized to L pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from vt_fast import checks
from vt_fast.nn.base import REFERENCE, refuse_pixel_shards
from vt_fast.nn.linear import projection_of
from vt_fast.nn.options import TokenizerOptions, spelled_out
from vt_fast.nn.position import resize_matrix
from vt_fast.nn.tokenizer import Tokenizer


class PoolingTokenizer(Tokenizer):
    """T = the map resized bilinearly to L pixels, without antialiasing; no softmax, and nothing learned.

    The value convolution acts on the resized map: the weights of a bilinear resize sum to 1. The paper's
    counts fit pooling in every module of a network, unlike its ICCV text.

    Args:
        channels: C of the feature map.
        num_tokens: L.
        token_channels: CT, by default `channels`.
        grid: (h, w) with h w = L; by default the divisors of L nearest to a square, h <= w.
        **options: `value_groups`, `token_linear`, `bias`, `backend`, `device`, `dtype`: see
            :class:`Tokenizer`.

    Raises:
        ValueError: the grid does not hold `num_tokens` pixels.

    Example:
        >>> PoolingTokenizer(64, num_tokens=16)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 16, 64])
    """

    @spelled_out(Tokenizer.__init__, TokenizerOptions)
    def __init__(
        self,
        channels: int,
        num_tokens: int = 16,
        token_channels: int | None = None,
        *,
        grid: tuple[int, int] | None = None,
        **options: Unpack[TokenizerOptions],
    ) -> None:
        super().__init__(channels, num_tokens, token_channels, position=None, **options)
        if grid is None:
            height = next(side for side in range(math.isqrt(num_tokens), 0, -1) if num_tokens % side == 0)
            grid = (height, num_tokens // height)
        if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != num_tokens:
            raise ValueError(f"`grid` must be (h, w) with h * w = num_tokens = {num_tokens}, got {grid}")
        self.grid = grid

    def why_not_fusable(self) -> str | None:
        """The resize needs the map that the projector would not write."""
        return "resizes the written map"

    def forward(  # type: ignore[override]  # it is never fused with a projector
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, L, CT), row-major over the grid, of a feature map (B, C, H, W).

        Raises:
            ValueError: `x` has a wrong shape, or there is a mask.
        """
        self._check(x, tokens)
        if mask is not None:
            raise ValueError("`mask` must be None with a PoolingTokenizer, whose weights are fixed")
        if self.backend == REFERENCE:
            return self._reference(x, tokens)
        refuse_pixel_shards(x, "where the map is resized")
        resized = F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False)
        return self.finish(resized.flatten(2).transpose(1, 2))

    def attention_maps(
        self, x: Tensor, tokens: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """The weights of the resize, the same for every sample: (B, L, H, W). There is no mask."""
        self._check(x, tokens)
        if mask is not None:
            raise ValueError("`mask` must be None with a PoolingTokenizer, whose weights are fixed")
        if self.backend == REFERENCE:
            from vt_fast.reference import position

            return self._weights(x, position.resize_matrix)
        return self._weights(x, resize_matrix)

    def _weights(self, x: Tensor, matrix: Callable[[int, int, torch.dtype, torch.device], Tensor]) -> Tensor:
        rows, columns = (
            matrix(source, target, x.dtype, x.device)
            for source, target in zip(x.shape[2:], self.grid, strict=True)
        )
        weights = torch.einsum("sh,tw->sthw", rows, columns).flatten(0, 1)
        return weights.expand(x.shape[0], -1, -1, -1)

    def _check(self, x: Tensor, tokens: Tensor | None) -> None:
        super()._check(x, tokens)
        checks.map_size(x)

    def _reference(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        from vt_fast.reference.tokenizers import pooling_tokenizer

        value, token = projection_of(self.value), projection_of(self.token)
        return pooling_tokenizer(x, self.grid, value=value, token=token)

"""Attention-augmented convolution (Bello et al., arXiv 1904.09925)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device

from vt_fast import checks
from vt_fast.layout import unflatten
from vt_fast.models.contexts import on_device
from vt_fast.nn.base import check_map
from vt_fast.nn.traced import is_traced, leaf


class AugmentedConv2d(nn.Module):
    """A convolution whose last channels are those of self-attention among all pixels.

    y = [conv(X), W_O O] with O_h = softmax((q_h k_h + q_h r) / sqrt(d)) v_h and r the sum of a vector for the
    row offset and one for the column offset (eqs. 1 to 5). Attention is N x N: use it on small maps.

    Where the convolution has a stride, or `pool` is above 1, attention runs on the map after average pooling,
    3x3 for a step of 2. Its result is enlarged bilinearly where it is smaller than the convolution's.

    Args:
        channels: C of the map.
        out_channels: D of the result.
        kernel_size: of the convolution, odd.
        stride: of the result.
        key_channels: of queries and keys, all heads together.
        value_channels: of the values, and of attention's share of D.
        num_heads: of the attention.
        pool: reduces the map on which attention runs once more.
        max_size: height and width of the largest map on which attention runs.
        device, dtype: of the parameters.

    Raises:
        ValueError: `num_heads` does not divide a width, or `value_channels` is not below D.

    Example:
        >>> AugmentedConv2d(16, 32, stride=2, value_channels=8, max_size=7)(torch.zeros(2, 16, 14, 14)).shape
        torch.Size([2, 32, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        key_channels: int = 160,
        value_channels: int,
        num_heads: int = 8,
        pool: int = 1,
        max_size: int,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.counts(
            channels=channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride, pool=pool,
            max_size=max_size,
        )  # fmt: skip
        checks.divides("num_heads", num_heads, "key_channels", key_channels)
        checks.divides("num_heads", num_heads, "value_channels", value_channels)
        if value_channels >= out_channels:
            raise ValueError(
                f"`value_channels` must be below out_channels = {out_channels}, got {value_channels}"
            )
        self.channels, self.num_heads, self.max_size = channels, num_heads, max_size
        self.widths, self.pooling = (key_channels, key_channels, value_channels), stride * pool
        with on_device(device):
            self.conv = nn.Conv2d(
                channels, out_channels - value_channels, kernel_size, stride, kernel_size // 2, bias=False
            )
            self.qkv = nn.Conv2d(channels, sum(self.widths), 1, bias=False)
            self.out = nn.Conv2d(value_channels, value_channels, 1, bias=False)
            width = key_channels // num_heads
            self.rows = nn.Parameter(torch.empty(2 * max_size - 1, width))
            self.columns = nn.Parameter(torch.empty(2 * max_size - 1, width))
            self.reset_parameters()
        self.to(dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the convolution as He et al. do, and positions as the paper does."""
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        for layer in (self.qkv, self.out):
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
        for table in (self.rows, self.columns):
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / stride, W / stride), sizes rounded up.

        Raises:
            ValueError: another shape, or a map on which attention would be larger than `max_size`.
        """
        if is_traced(x):
            found: Tensor = leaf(self, x)
            return found
        check_map(x, self, self.channels)
        checks.map_size(x)
        convolved = self.conv(x)
        if self.pooling > 1:
            step = self.pooling
            x = F.avg_pool2d(x, step + 1, step, padding=step // 2, count_include_pad=False)
        attended = self.out(self._attend(x))
        if attended.shape[2:] != convolved.shape[2:]:
            attended = F.interpolate(attended, convolved.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([convolved, attended], 1)

    def _attend(self, x: Tensor) -> Tensor:
        """The heads' results side by side, (B, value_channels, H, W)."""
        height, width = x.shape[2:]
        if max(height, width) > self.max_size:
            raise ValueError(
                f"attention must run on maps of at most {self.max_size} x {self.max_size}, got "
                f"{height} x {width}"
            )
        queries, keys, values = (
            unflatten(part, 1, (self.num_heads, -1)) for part in self.qkv(x).split(self.widths, 1)
        )
        queries = (queries * queries.shape[2] ** -0.5).movedim(2, -1)  # (B, heads, H, W, d)
        by_row = queries @ self._relative(self.rows, height)  # (B, heads, H, W, H)
        by_column = (queries.transpose(2, 3) @ self._relative(self.columns, width)).transpose(2, 3)
        bias = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)
        logits = queries.flatten(2, 3) @ keys.flatten(3) + bias.flatten(4).flatten(2, 3)
        mixed = logits.softmax(-1) @ values.flatten(3).mT
        return unflatten(mixed.mT.flatten(1, 2), 2, (height, width))

    def _relative(self, table: Tensor, count: int) -> Tensor:
        """(count, d, count): for each row of queries, the vectors of all rows of keys."""
        places = torch.arange(count, device=table.device)
        return table[places - places[:, None] + self.max_size - 1].mT

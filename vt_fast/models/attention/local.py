"""Layers that take the place of a spatial convolution: local relation and stand-alone self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device

from vt_fast import checks
from vt_fast.layout import unflatten
from vt_fast.models.attention.windows import WindowAttention, combined, gathered, mixture, products, views
from vt_fast.models.contexts import on_device
from vt_fast.nn.traced import is_traced, leaf


class StandAloneAttention(WindowAttention):
    """Self-attention in windows (Ramachandran et al., arXiv 1906.05909, eqs. 2 and 3).

    y_i = sum_j softmax_j(q_i (k_j + r_{j - i})) v_j over the window around i, for each head. Half of the
    channels of r depend on the row offset, the other half on the column offset. Logits are not scaled, as
    the paper prints them. Pixels outside of the map have keys and values of 0 and take part. A stride is an
    average pooling of the result.

    Args:
        channels: C of the map.
        out_channels: D of the result, by default C.
        num_heads: head h takes channel block h of D.
        size: of the window, odd.
        stride: of the result.
        unfold: see :mod:`vt_fast.models.attention.windows`.
        device, dtype: of the parameters.

    Raises:
        ValueError: an even size, or 2 `num_heads` does not divide D.

    Example:
        >>> StandAloneAttention(16, 32, stride=2)(torch.zeros(2, 16, 14, 14)).shape
        torch.Size([2, 32, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        num_heads: int = 8,
        size: int = 7,
        stride: int = 1,
        *,
        unfold: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, size, unfold=unfold)
        out_channels = channels if out_channels is None else out_channels
        checks.counts(out_channels=out_channels, num_heads=num_heads, stride=stride)
        checks.divides("2 num_heads", 2 * num_heads, "out_channels", out_channels)
        self.num_heads, self.stride = num_heads, stride
        with on_device(device):
            self.query = nn.Conv2d(channels, out_channels, 1, bias=False)
            self.key = nn.Conv2d(channels, out_channels, 1, bias=False)
            self.value = nn.Conv2d(channels, out_channels, 1, bias=False)
            half = out_channels // num_heads // 2
            self.rows = nn.Parameter(torch.empty(num_heads, size, half))
            self.columns = nn.Parameter(torch.empty(num_heads, size, half))
            self.reset_parameters()
        self.to(dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights so that logits start at order 1 for inputs of unit variance."""
        width = 2 * self.rows.shape[2]
        nn.init.normal_(self.query.weight, std=(self.channels * width) ** -0.5)
        for parameter in (self.key.weight, self.value.weight):
            nn.init.normal_(parameter, std=self.channels**-0.5)
        for parameter in (self.rows, self.columns):
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / stride, W / stride), sizes rounded up."""
        if is_traced(x):
            found: Tensor = leaf(self, x)
            return found
        self._check(x)
        queries, size = self.query(x), self.size
        logits = products(queries, self.key(x), self.num_heads, size, unfold=self.unfold)
        # (B, heads, N, half) with (heads, half, size).
        by_row, by_column = unflatten(queries, 1, (self.num_heads, 2, -1)).flatten(4).unbind(2)
        rows, columns = (
            unflatten((half.mT @ table.mT).mT, 3, x.shape[2:])
            for half, table in ((by_row, self.rows), (by_column, self.columns))
        )
        logits = logits + (rows.unsqueeze(3) + columns.unsqueeze(2)).flatten(2, 3)
        y = mixture(logits.softmax(2), self.value(x), size, unfold=self.unfold)
        return y if self.stride == 1 else F.avg_pool2d(y, self.stride, ceil_mode=True)


class AttentionStem(nn.Module):
    """The stem of stand-alone networks: attention to 4 x 4 windows whose values depend on the offset.

    y_i = sum_j softmax_j(q_i k_j) (sum_m p_m(j - i) W_m) x_j, p(j - i) = softmax_m((row + column) nu_m)
    (Ramachandran et al., arXiv 1906.05909, section 3.2).

    Args:
        channels: C of the images.
        out_channels: D of the result.
        num_heads: head h takes channel block h of D.
        size: of the window; an even one reaches one pixel further down and to the right.
        num_mixtures: of the weights W_m.
        unfold: True to gather the windows; see :mod:`vt_fast.models.attention.windows`.
        device, dtype: of the parameters.

    Raises:
        ValueError: `num_heads` does not divide D.

    Example:
        >>> AttentionStem(3, 64)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 64, 32, 32])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        num_heads: int = 8,
        size: int = 4,
        num_mixtures: int = 4,
        *,
        unfold: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.counts(channels=channels, out_channels=out_channels, size=size, num_mixtures=num_mixtures)
        checks.divides("num_heads", num_heads, "out_channels", out_channels)
        self.channels, self.num_heads, self.size, self.unfold = channels, num_heads, size, unfold
        with on_device(device):
            self.query = nn.Conv2d(channels, out_channels, 1, bias=False)
            self.key = nn.Conv2d(channels, out_channels, 1, bias=False)
            self.values = nn.Parameter(torch.empty(num_mixtures, out_channels, channels))
            self.rows = nn.Parameter(torch.empty(size, out_channels))
            self.columns = nn.Parameter(torch.empty(size, out_channels))
            self.mixtures = nn.Parameter(torch.empty(num_mixtures, out_channels))
            self.reset_parameters()
        self.to(dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights so that logits start at order 1 for inputs of unit variance."""
        width = self.query.out_channels
        nn.init.normal_(self.query.weight, std=(self.channels * width / self.num_heads) ** -0.5)
        for parameter in (self.key.weight, self.values):
            nn.init.normal_(parameter, std=self.channels**-0.5)
        for parameter in (self.rows, self.columns):
            nn.init.normal_(parameter)
        nn.init.normal_(self.mixtures, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W)."""
        if is_traced(x):
            found: Tensor = leaf(self, x)
            return found
        queries, keys = self.query(x), self.key(x)
        weights = products(queries, keys, self.num_heads, self.size, unfold=self.unfold).softmax(2)
        places = (self.rows[:, None] + self.columns).flatten(0, 1)  # (size^2, D)
        shares = (places @ self.mixtures.T).softmax(1)
        # One matrix for each offset.
        values = (shares @ self.values.flatten(1)).view(-1, *self.values.shape[1:])
        if self.unfold:
            return combined(weights, (values @ gathered(x, self.size).transpose(1, 2)).transpose(1, 2))
        # Weigh the image's few channels, and apply all matrices at once.
        weighted = weights.unsqueeze(2) * torch.stack(views(x, self.size), 2).unsqueeze(1)
        kernel = values.permute(1, 2, 0).flatten(1)[:, :, None, None]  # (D, C size^2, 1, 1)
        return F.conv2d(weighted.flatten(1, 3), kernel, groups=self.num_heads)


class LocalRelation(WindowAttention):
    """The local relation layer (Hu et al., arXiv 1904.11491, section 3).

    y_i = sum_j softmax_j(-(q_i - k_j)^2 + g(j - i)) v_j over the window around i. q and k are numbers, which
    `share` channels have in common; g is a network of two layers on the offset. Pixels outside of the map
    have keys and values of 0 and take part.

    Their counts imply the 1x1 convolution that makes the values. The width of g is not stated.

    Args:
        channels: C of the map and of the result.
        size: of the window, odd.
        stride: of the result.
        share: how many channels have their weights in common; the last group may have fewer.
        geometry_channels: width of g.
        unfold: see :mod:`vt_fast.models.attention.windows`.
        device, dtype: of the parameters.

    Raises:
        ValueError: an even size, or a number below 1.

    Example:
        >>> LocalRelation(20, stride=2)(torch.zeros(2, 20, 14, 14)).shape
        torch.Size([2, 20, 7, 7])
    """

    offsets: Tensor

    def __init__(
        self,
        channels: int,
        size: int = 7,
        stride: int = 1,
        share: int = 8,
        *,
        geometry_channels: int = 16,
        unfold: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, size, unfold=unfold)
        checks.counts(stride=stride, share=share, geometry_channels=geometry_channels)
        self.stride, self.share = stride, share
        groups = -(-channels // share)
        with on_device(device):
            self.query = nn.Conv2d(channels, groups, 1, bias=False)
            self.key = nn.Conv2d(channels, groups, 1, bias=False)
            self.value = nn.Conv2d(channels, channels, 1, bias=False)
            self.geometry = nn.Sequential(
                nn.Linear(2, geometry_channels), nn.ReLU(), nn.Linear(geometry_channels, groups, bias=False)
            )
            steps = torch.linspace(-1, 1, size)
            self.register_buffer("offsets", torch.cartesian_prod(steps, steps), persistent=False)
            self.reset_parameters()
        self.to(dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the weights so that logits start at order 1 for inputs of unit variance."""
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=self.channels**-0.5)
        for part in self.geometry:
            if isinstance(part, nn.Linear):
                part.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / stride, W / stride), sizes rounded up."""
        if is_traced(x):
            found: Tensor = leaf(self, x)
            return found
        self._check(x)
        queries = self.query(x)[:, :, :: self.stride, :: self.stride]
        keys = torch.stack(views(self.key(x), self.size, self.stride), 2)
        prior = self.geometry(self.offsets).T[:, :, None, None]
        weights = (prior - (queries.unsqueeze(2) - keys).square()).softmax(2)
        values = self.value(x)
        filled = F.pad(values, (0, 0, 0, 0, 0, -self.channels % self.share))
        return mixture(weights, filled, self.size, self.stride, unfold=self.unfold)[:, : self.channels]

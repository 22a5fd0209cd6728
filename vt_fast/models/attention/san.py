"""Self-attention networks with vector attention in windows (Zhao et al., arXiv 2004.13621)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.types import Device

from vt_fast import checks
from vt_fast.layout import unflatten
from vt_fast.models.attention.windows import WindowAttention, mixture, views
from vt_fast.models.contexts import on_device
from vt_fast.nn.traced import is_traced, leaf

# Blocks of each stage, by the number of all of them.
DEPTHS = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}


class VectorAttention(WindowAttention, ABC):
    """What pairwise and patchwise attention share: y_i = sum_j w_ij v_j, one weight for `share` channels.

    The map is reflected at its borders, so it must be larger than half a window.

    Args:
        channels: C of the map.
        out_channels: D of the result; by default C / 4.
        relation_channels: of what the weights are made from; by default C / 16.
        size: of the window, odd.
        share: how many channels have their weights in common; must divide D.
        unfold: see :mod:`vt_fast.models.attention.windows`.
        device, dtype: of the parameters.

    Raises:
        ValueError: an even size, or `share` does not divide D.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        relation_channels: int | None = None,
        size: int = 7,
        share: int = 8,
        *,
        unfold: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, size, unfold=unfold)
        out_channels = channels // 4 if out_channels is None else out_channels
        relation = channels // 16 if relation_channels is None else relation_channels
        checks.counts(out_channels=out_channels, relation_channels=relation)
        checks.divides("share", share, "out_channels", out_channels)
        with on_device(device):
            self.query = nn.Conv2d(channels, relation, 1)
            self.key = nn.Conv2d(channels, relation, 1)
            self.value = nn.Conv2d(channels, out_channels, 1)
            self._make_relation(relation, out_channels // share)
        self.to(dtype=dtype)

    @abstractmethod
    def _make_relation(self, relation: int, groups: int) -> None:
        """Make gamma."""

    @abstractmethod
    def _weights(self, queries: Tensor, keys: list[Tensor]) -> Tensor:
        """(B, D / share, size * size, H, W) from a map and its windows of keys."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W).

        Raises:
            ValueError: another shape, or a map too small to be reflected.
        """
        if is_traced(x):
            found: Tensor = leaf(self, x)
            return found
        self._check(x)
        if min(x.shape[2:]) <= self.size // 2:
            raise ValueError(
                f"`x` must be larger than {self.size // 2} pixels each way, got {tuple(x.shape)}"
            )
        weights = self._weights(self.query(x), views(self.key(x), self.size, padding="reflect"))
        return mixture(weights, self.value(x), self.size, padding="reflect", unfold=self.unfold)


class PairwiseAttention(VectorAttention):
    """w_ij = softmax_j(gamma([phi(x_i) - psi(x_j), P(p_i - p_j)])), with places p in [-1, 1] (eqs. 2, 3).

    gamma is BatchNorm, ReLU and a linear layer, twice. P and the last layer have no bias, unlike in the
    authors' code: it would cancel. For the arguments see :class:`VectorAttention`.

    Example:
        >>> PairwiseAttention(64)(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def _make_relation(self, relation: int, groups: int) -> None:
        self.place = nn.Conv2d(2, 2, 1, bias=False)
        self.relation = nn.Sequential(
            nn.BatchNorm2d(relation + 2),
            nn.ReLU(),
            nn.Conv2d(relation + 2, relation, 1, bias=False),
            nn.BatchNorm2d(relation),
            nn.ReLU(),
            nn.Conv2d(relation, groups, 1, bias=False),
        )

    def _weights(self, queries: Tensor, keys: list[Tensor]) -> Tensor:
        size = queries.shape[2:]
        down, right = (torch.linspace(-1, 1, count, device=queries.device) for count in size)
        grid = torch.stack([right.expand(*size), down[:, None].expand(*size)])
        places = self.place(grid[None].to(self.place.weight.dtype))
        steps = torch.stack([places - view for view in views(places, self.size, padding="reflect")], 2)
        differences = torch.stack([queries - view for view in keys], 2)
        steps = steps.to(differences.dtype).expand(queries.shape[0], -1, -1, -1, -1)
        relation = torch.cat([differences, steps], 1).flatten(3)
        return unflatten(self.relation(relation).softmax(2), 3, size)


class PatchwiseAttention(VectorAttention):
    """w_i = gamma([phi(x_i), all psi(x_j) of the window]), not normalised (eqs. 4, 5).

    gamma is BatchNorm, ReLU and a linear layer, twice. For the arguments see :class:`VectorAttention`.

    Example:
        >>> PatchwiseAttention(64)(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def _make_relation(self, relation: int, groups: int) -> None:
        count = self.size**2
        self.relation = nn.Sequential(
            nn.BatchNorm2d(relation * (count + 1)),
            nn.ReLU(),
            nn.Conv2d(relation * (count + 1), groups, 1, bias=False),
            nn.BatchNorm2d(groups),
            nn.ReLU(),
            nn.Conv2d(groups, count * groups, 1),
        )

    def _weights(self, queries: Tensor, keys: list[Tensor]) -> Tensor:
        # Channels before offsets, as unfold orders them.
        patches = torch.cat([queries, torch.stack(keys, 2).flatten(1, 2)], 1)
        return unflatten(self.relation(patches), 1, (-1, self.size**2))


class SANBlock(nn.Module):
    """x + conv(relu(bn(attention(relu(bn(x)))))), the bottleneck of a :class:`SAN`."""

    def __init__(
        self, attention: Callable[..., VectorAttention], channels: int, size: int, *, unfold: bool
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = attention(channels, size=size, unfold=unfold)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = self.sam(torch.relu(self.bn1(x)))
        found: Tensor = x + self.conv(torch.relu(self.bn2(y)))
        return found


class SAN(nn.Module):
    """A self-attention network: no convolution larger than 1x1 (section 4 of the paper).

    Images must be so large that the last map, 1 / 32 as high and wide, is more than 3 pixels each way.

    Args:
        variant: "pairwise" or "patchwise".
        depth: 10, 15 or 19 blocks.
        num_classes: of the classifier.
        in_channels: of the images.
        unfold: see :mod:`vt_fast.models.attention.windows`.
        device, dtype: of the parameters.

    Raises:
        ValueError: an unknown variant or depth.

    Example:
        >>> SAN("pairwise", 10, num_classes=10)(torch.zeros(1, 3, 128, 128)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        variant: str,
        depth: int = 19,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        unfold: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kinds: dict[str, Callable[..., VectorAttention]] = {
            "pairwise": PairwiseAttention,
            "patchwise": PatchwiseAttention,
        }
        checks.choice("variant", variant, kinds)
        if depth not in DEPTHS:
            raise ValueError(f"`depth` must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        checks.counts(num_classes=num_classes, in_channels=in_channels)
        with on_device(device):
            self.conv_in = nn.Conv2d(in_channels, 64, 1, bias=False)
            self.bn_in = nn.BatchNorm2d(64)
            self.pool = nn.MaxPool2d(2)
            channels = 64
            for index, count in enumerate(DEPTHS[depth]):
                out_channels = 64 if index == 0 else 128 << index
                size = 3 if index == 0 else 7
                blocks = (SANBlock(kinds[variant], out_channels, size, unfold=unfold) for _ in range(count))
                self.add_module(f"conv{index}", nn.Conv2d(channels, out_channels, 1, bias=False))
                self.add_module(f"layer{index}", nn.Sequential(*blocks))
                self.add_module(f"bn{index}", nn.BatchNorm2d(out_channels))
                channels = out_channels
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(channels, num_classes)
        self.num_stages = len(DEPTHS[depth])
        self.to(dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        x = torch.relu(self.bn_in(self.conv_in(x)))
        for index in range(self.num_stages):
            for name in ("conv", "layer"):
                x = self.get_submodule(f"{name}{index}")(self.pool(x) if name == "conv" else x)
            x = torch.relu(self.get_submodule(f"bn{index}")(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits

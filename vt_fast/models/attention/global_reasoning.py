"""The global reasoning unit (Chen et al., arXiv 1811.12814), by the two ops."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device

from vt_fast import checks, functional
from vt_fast.layout import as_pixels, pixel_count
from vt_fast.models.attention.double_attention import project_map
from vt_fast.models.contexts import on_device
from vt_fast.nn.base import REFERENCE, BackendModule, check_map, like_map
from vt_fast.nn.linear import GroupedLinear, projection_of
from vt_fast.nn.options import Factory
from vt_fast.nn.traced import is_traced, leaf


class GlobalReasoning(BackendModule):
    """GloRe: project pixels to nodes linearly, mix the nodes by a graph convolution, and project back.

    With B = theta(X) (N x n) and V = B^T phi(X) (n x s), Z = W_g relu(V + A V + a) and
    Y = X + BatchNorm(B W_out Z) (section 3). No weight is normalised. `normalize` divides V by N, as the
    authors' code does for images of varying size.

    The ops take theta, so that B is never written. Where the map has n pixels or more, phi and W_out act on
    the n nodes in their place; phi's bias is added times each node's sum of weights. At initialisation
    BatchNorm's scale is zero.

    Args:
        channels: C of the map.
        num_nodes: n; by default C / 4.
        states: s, channels of a node; by default 2 n.
        normalize: whether to divide by the number of pixels.
        backend: see :func:`vt_fast.nn.set_backend`. "reference" projects the pixels.
        device, dtype: of the parameters.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> GlobalReasoning(64)(torch.zeros(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """

    def __init__(
        self,
        channels: int,
        num_nodes: int | None = None,
        states: int | None = None,
        *,
        normalize: bool = False,
        backend: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(backend)
        num_nodes = channels // 4 if num_nodes is None else num_nodes
        states = 2 * num_nodes if states is None else states
        checks.counts(channels=channels, num_nodes=num_nodes, states=states)
        checks.flag("normalize", normalize)
        factory: Factory = {"device": device, "dtype": dtype}
        self.channels, self.normalize = channels, normalize
        self.phi = GroupedLinear(channels, states, **factory)
        self.theta = GroupedLinear(channels, num_nodes, **factory)
        self.adjacency = GroupedLinear(num_nodes, num_nodes, **factory)
        self.update = GroupedLinear(states, states, bias=False, **factory)
        self.out = GroupedLinear(states, channels, bias=False, **factory)
        with on_device(device):
            self.norm = nn.BatchNorm2d(channels, eps=1e-4, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero BatchNorm's scale; the other parts have drawn their own weights."""
        self.norm.reset_parameters()
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if is_traced(x):
            traced: Tensor = leaf(self, x)
            return traced
        check_map(x, self, self.channels)
        checks.map_size(x)
        y: Tensor = x + self.norm(self._reason(x))
        return y

    def _reason(self, x: Tensor) -> Tensor:
        scale = 1 / (x.shape[2] * x.shape[3]) if self.normalize else 1.0
        if self.backend == REFERENCE:
            from vt_fast.reference.attention import global_reasoning

            layers = (self.phi, self.theta, self.adjacency, self.update, self.out)
            pixels = global_reasoning(as_pixels(x), *map(projection_of, layers), scale=scale)
            return like_map(pixels, x)
        rows, token_bias = self.theta.weight, self.theta.bias
        op: dict[str, Any] = {"token_bias": token_bias, "normalize": None, "backend": self.backend}
        few = pixel_count(x) < rows.shape[0]
        if few:
            nodes = functional.tokenize(x, rows, values=project_map(x, self.phi), **op)
        else:
            sums, mass = functional.tokenize(x, rows, return_stats=True, **op)
            nodes = F.linear(sums, self.phi.weight)
            nodes = nodes + (mass.unsqueeze(2) * cast(Tensor, self.phi.bias)).to(nodes.dtype)
        nodes = nodes * scale
        nodes = self.update(torch.relu(nodes + self.adjacency(nodes.mT).mT))
        if few:
            return project_map(functional.project(x, rows, nodes, **op), self.out)
        return functional.project(x, rows, self.out(nodes), **op)

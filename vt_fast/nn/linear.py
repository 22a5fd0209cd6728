"""Grouped 1x1 convolution, and its transpose, which moves a projection from N pixels to L tokens."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device

from vt_fast import checks
from vt_fast.layout import shards_pixels, unflatten
from vt_fast.nn.frozen import Freezable
from vt_fast.nn.init import lecun_normal_
from vt_fast.nn.members import why_not_fused
from vt_fast.nn.products import linear, matmul

if TYPE_CHECKING:
    from vt_fast.reference.linear import Projection


class GroupedLinear(Freezable, nn.Module):
    """A 1x1 convolution over the last dimension, in groups: (..., in) -> (..., out).

    Args:
        in_features: input width.
        out_features: output width.
        groups: output block g reads input block g alone; must divide both widths.
        bias: whether to add a bias; it starts at zero.
        gain: deviation of the outputs at initialisation for unit-variance inputs; 0 starts from zero weights.
        device, dtype: of the parameters.

    Attributes:
        weight: (out, in / groups), as a 1x1 convolution stores it without the trailing ones.
        bias: (out,) or None.

    Raises:
        ValueError: `groups` does not divide both widths.

    Example:
        >>> GroupedLinear(64, 128, groups=4)(torch.zeros(2, 16, 64)).shape
        torch.Size([2, 16, 128])
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int = 1,
        *,
        bias: bool = True,
        gain: float = 1.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.counts(in_features=in_features, out_features=out_features, groups=groups)
        checks.flag("bias", bias)
        checks.number("gain", gain)
        checks.divides("groups", groups, "in_features", in_features)
        checks.divides("groups", groups, "out_features", out_features)
        self.in_features, self.out_features, self.groups, self.gain = in_features, out_features, groups, gain
        weight = torch.empty(out_features, in_features // groups, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight)
        vector = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if vector is None else nn.Parameter(vector))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight with deviation gain / sqrt(in / groups); zero the bias."""
        lecun_normal_(self.weight, self.in_features // self.groups, self.gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor | None,
        *,
        fold: tuple[int, int] | None = None,
        channels_first: bool = False,
        parameters: bool = False,
    ) -> Any:
        """Map (..., in) to (..., out).

        Whatever else needs the parameters goes through a call too, so that hooks of PyTorch's wrappers, such
        as those that gather or compute the parameters, run first.

        Args:
            x: (..., in).
            fold: return what :meth:`fold` does with these counts of heads and blocks, and what the bias adds
                to the logits: (..., num_heads * L), or None without a bias.
            channels_first: x is (B, in, H, W), and so is the result, (B, out, H, W).
            parameters: return copies of weight and bias, which outlive the call; x is None.

        Raises:
            TypeError: no tensor.
            ValueError: another width, or several of `fold`, `channels_first` and `parameters`.
        """
        if (fold is not None) + channels_first + parameters > 1:
            raise ValueError("one of `fold`, `channels_first` and `parameters` may be given")
        if parameters:
            return self.weight.clone(), None if self.bias is None else self.bias.clone()
        if x is None:
            raise TypeError("`x` must be a torch.Tensor, got NoneType")
        if fold is not None:
            return self._folded(x, *fold)
        if type(x) is not Tensor and shards_pixels(x):
            from vt_fast.distributed import dtensors

            apply = functools.partial(self._apply_to, channels_first=channels_first)
            return dtensors.pixelwise(apply, x, self.out_features, self.weight, self.bias)
        return self._apply_to(x, self.weight, self.bias, channels_first=channels_first)

    def _apply_to(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, channels_first: bool) -> Tensor:
        """The linear map of x, with these parameters."""
        if channels_first:
            return F.conv2d(x, weight[:, :, None, None], bias, groups=self.groups)
        if self.groups == 1:
            try:
                return linear(x, weight, bias, keeper=self)
            except (TypeError, RuntimeError):
                checks.features("x", x, self.in_features)
                raise
        checks.features("x", x, self.in_features)
        # One small product for each group: no block-diagonal matrix is formed, nor counted by FLOP counters.
        rows = x.reshape(-1, self.groups, weight.shape[1]).transpose(0, 1)
        blocks = torch.unflatten(weight, 0, (self.groups, -1)).transpose(1, 2)
        y = torch.bmm(rows, blocks).transpose(0, 1).reshape(*x.shape[:-1], self.out_features)
        return y if bias is None else y + bias

    def fold(self, rows: Tensor, num_heads: int = 1, blocks: int = 1) -> Tensor:
        """Apply the transpose of the weight to query or key rows, so that it need not be applied to pixels.

        The inner product of a projected pixel W x with a row r is that of x with W^T r. With heads, head i
        sees channel block i of W x, so its row is W^T r_i, where r_i is r with zeros outside of block i.
        Neither r_i nor a block-diagonal matrix is formed. For the bias see :meth:`forward`.

        Args:
            rows: (B, L, out) or (L, out).
            num_heads: channel blocks of the projection's output; must divide `out_features`.
            blocks: also split the input channels into this many blocks, for an op whose heads take one block
                each. Must divide `num_heads` and `groups`, so that block b of the input feeds block b of the
                output alone.

        Returns:
            (..., num_heads * L, in / blocks), as the ops take them: rows h L to (h + 1) L belong to head h,
            restricted to channel block h blocks / num_heads, rounded down, outside of which they are zero.

        Raises:
            ValueError: a count does not divide what it must.

        Example:
            >>> layer = GroupedLinear(8, 6, groups=2)
            >>> x, rows = torch.randn(5, 8), torch.randn(3, 6)
            >>> logits = layer(x) @ rows.T
            >>> torch.allclose(logits, x @ layer.fold(rows).T, atol=1e-5)
            True
        """
        folded: Tensor = self(rows, fold=(num_heads, blocks))[0]
        return folded

    def _folded(self, rows: Tensor, num_heads: int, blocks: int) -> tuple[Tensor, Tensor | None]:
        if num_heads == blocks == self.groups == 1:
            bias = self.bias
            # Not a product with a vector: FLOP counters do not agree on those.
            return matmul(rows, self.weight), None if bias is None else (rows * bias).sum(-1)
        checks.counts(num_heads=num_heads, blocks=blocks)
        checks.divides("num_heads", num_heads, "out_features", self.out_features)
        checks.divides("blocks", blocks, "num_heads", num_heads)
        checks.divides("blocks", blocks, "groups", self.groups)
        return self._folded_rows(rows, num_heads, blocks).flatten(-4, -2), self._bias_logits(rows, num_heads)

    def _bias_logits(self, rows: Tensor, num_heads: int) -> Tensor | None:
        if self.bias is None:
            return None
        return unflatten(rows * self.bias, -1, (num_heads, -1)).sum(-1).transpose(-1, -2).flatten(-2)

    def _folded_rows(self, rows: Tensor, num_heads: int, blocks: int) -> Tensor:
        """(..., blocks, num_heads / blocks, L, in / blocks)."""
        inside, groups = num_heads // blocks, self.groups // blocks
        # Inside a block, cut the output into the coarsest pieces that lie in one head and in one group.
        pieces = math.lcm(inside, groups)
        weight = self.weight.reshape(blocks, pieces, -1, self.weight.shape[1])
        folded = torch.einsum(
            "...lbpo,bpoc->...bplc", unflatten(rows, -1, (blocks, pieces, weight.shape[2])), weight
        )
        if inside == 1:
            # One head has all pieces, which are the groups, side by side.
            return folded.transpose(-3, -2).flatten(-2).unsqueeze(-3)
        if groups > 1:
            # A piece fills only the channels of its group.
            place = torch.eye(groups, dtype=rows.dtype, device=rows.device)
            place = place.repeat_interleave(pieces // groups, dim=0)
            folded = (folded.unsqueeze(-2) * place[:, None, :, None]).flatten(-2)
        if pieces > inside:
            folded = unflatten(folded, -3, (inside, pieces // inside)).sum(-3)
        return folded

    def extra_repr(self) -> str:
        """Widths, groups and bias, for printing."""
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{self.in_features}, {self.out_features}{groups}, bias={self.bias is not None}"


@overload
def projection_of(layer: GroupedLinear) -> Projection: ...


@overload
def projection_of(layer: GroupedLinear | None) -> Projection | None: ...


def projection_of(layer: GroupedLinear | None) -> Projection | None:
    """A layer as `vt_fast.reference` takes it: its parameters, or itself where it must be called."""
    from vt_fast.reference.linear import Projection

    if layer is None or why_not_fused(layer, GroupedLinear) is not None:
        return cast("Projection | None", layer)
    plain = isinstance(layer, GroupedLinear) and not (layer._forward_pre_hooks or "forward" in layer.__dict__)
    if plain:
        return Projection(layer.weight, layer.bias, layer.groups)
    weight, bias = layer(None, parameters=True)
    return Projection(weight, bias, layer.groups)


def spread(rows: Tensor, num_heads: int) -> Tensor:
    """Rows (..., L, C) -> (..., num_heads, L, C): head i keeps channel block i, the rest is zero."""
    eye = torch.eye(num_heads, dtype=rows.dtype, device=rows.device)
    parts = unflatten(rows, -1, (num_heads, -1)).unsqueeze(-4)
    return (parts * eye[:, None, :, None]).flatten(-2)

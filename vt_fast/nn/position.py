"""Position codes: where a token looks, as numbers linear in its attention, so that they fold into a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import Device

from vt_fast import checks
from vt_fast.nn.init import lecun_normal_


def resize_matrix(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The one-dimensional bilinear resize as a matrix (target, source), whose rows sum to 1.

    Applied to both sides of a map it is `torch.nn.functional.interpolate` with mode "bilinear", pixel centres
    aligned (``align_corners=False``) and no antialiasing. The coordinates are computed in float64 and rounded
    once.

    Example:
        >>> resize_matrix(4, 2, torch.float32, torch.device("cpu")).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    centres = torch.arange(target, dtype=torch.float64, device=device) + 0.5
    coordinates = (centres * (source / target) - 0.5).clamp(min=0)
    left = coordinates.long().clamp(max=source - 1)
    right = (left + 1).clamp(max=source - 1)
    part = (coordinates - left).unsqueeze(1)
    # Not F.one_hot, which fixes the length where a compiler or an exporter leaves it open.
    cells = torch.arange(source, device=device)
    return ((1 - part) * (left[:, None] == cells) + part * (right[:, None] == cells)).to(dtype)


class PositionCode(nn.Module, ABC):
    """Base class: a linear map from a token's attention over the pixels to `features` numbers.

    A code is A^T E for a table E of (N, P) that depends on the parameters and the size of the map alone, so
    `tokenize` pools it as `extra_values` in the same pass. The weights start at order 1: attention on a
    single pixel gives numbers of order 1, evenly spread attention gives small ones.

    Args:
        grid: S, the attention is resized to S x S.
        features: P, numbers per token.
    """

    def __init__(self, grid: int, features: int) -> None:
        super().__init__()
        checks.counts(grid=grid, features=features)
        self.grid, self.features = grid, features

    def forward(
        self, height: int, width: int, *, attention: Tensor | None = None, sharded: Tensor | None = None
    ) -> Tensor:
        """:meth:`table`, or the code (B, L, P) of an attention (B, N, L), as the paper writes it.

        Args:
            height: H of the map.
            width: W of the map.
            attention: see above.
            sharded: the map, a DTensor that is sharded over its rows; then the table is one, with the rows'
                pixels.
        """
        if attention is not None:
            return self._reference(attention, (height, width))
        if sharded is None:
            return self.table(height, width)
        if type(self).table is not PositionCode.table:
            raise ValueError(
                f"`x` must not be sharded over its pixels where {type(self).__name__} has a table of its own"
            )
        from vt_fast.distributed import dtensors

        cells = self._cells()
        return dtensors.position_table(cells, *self._resizes(height, width, cells), sharded)

    def table(self, height: int, width: int) -> Tensor:
        """E for a map of H x W: (N, P), row-major. Differentiable; takes H W P numbers, never N x N."""
        cells = self._cells()
        rows, columns = self._resizes(height, width, cells)
        # One side at a time: a single einsum of all three would form S S H W numbers in between.
        stretched = torch.einsum("sh,stp->htp", rows, cells)
        return torch.einsum("tw,htp->hwp", columns, stretched).flatten(0, 1)

    def _resizes(self, height: int, width: int, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The resizes of the rows and the columns to the grid: (S, H) and (S, W)."""
        rows, columns = (
            resize_matrix(side, self.grid, cells.dtype, cells.device) for side in (height, width)
        )
        return rows, columns

    @abstractmethod
    def _reference(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """The code as the paper writes it: attention (B, N, L) over a map of `size` (H, W) -> (B, L, P)."""

    @abstractmethod
    def _cells(self) -> Tensor:
        """The code of each cell of the S x S grid: (S, S, P)."""

    def extra_repr(self) -> str:
        """Grid and features, for printing."""
        return f"grid={self.grid}, features={self.features}"


class LinearPositionCode(PositionCode):
    """The simple form: resize A to S x S bilinearly, multiply by W_{A->P}.

    Args:
        grid: S.
        features: P.
        device, dtype: of the parameters.

    Attributes:
        weight: (S S, P), W_{A->P}.

    Example:
        >>> LinearPositionCode(grid=14, features=49).table(28, 20).shape
        torch.Size([560, 49])
    """

    def __init__(
        self, grid: int = 14, features: int = 49, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(grid, features)
        self.weight = nn.Parameter(torch.empty(grid * grid, features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from a unit normal distribution."""
        lecun_normal_(self.weight, 1)

    def _reference(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        from vt_fast.reference.position import linear_position_code

        return linear_position_code(attention, size, self.grid, self.weight)

    def _cells(self) -> Tensor:
        return torch.unflatten(self.weight, 0, (self.grid, self.grid))


class ConvPositionCode(PositionCode):
    """The first version's form: A resized to S x S, n 3x3 convolutions of stride 2, a 1x1, a matrix.

    There is no activation between the convolutions (the paper names none), so the code is linear: the table
    is the transposed chain applied to the matrix.

    Args:
        grid: S; odd sides are rounded up by each stride.
        features: P.
        convolutions: n, at least 1.
        width: channels between the convolutions. The paper does not state it. Its counts fit 1, as in the
            authors' code for static tokenizers. For dynamic ones that code gives the heads' attention as that
            many channels to convolutions as wide; here the code sees the mean of the heads.
        device, dtype: of the parameters.

    Attributes:
        kernel0, kernel1, ..: n tensors (width, 1 or width, 3, 3).
        mix: (1, width, 1, 1).
        weight: (Cp, P), Cp = S S / 4^n (49 for S = 14, n = 1).

    Example:
        >>> code = ConvPositionCode(grid=14, features=49)
        >>> code.weight.shape, code.table(28, 28).shape
        (torch.Size([49, 49]), torch.Size([784, 49]))
    """

    def __init__(
        self,
        grid: int = 14,
        features: int = 49,
        *,
        convolutions: int = 1,
        width: int = 1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(grid, features)
        checks.counts(convolutions=convolutions, width=width)
        self.width = width
        empty = partial(torch.empty, device=device, dtype=dtype)
        # Not in a ParameterList: tools would take it for a module that is called.
        self._names = [f"kernel{index}" for index in range(convolutions)]
        for index, name in enumerate(self._names):
            kernel = empty(width, 1 if index == 0 else width, 3, 3)
            self.register_parameter(name, nn.Parameter(kernel))
        self.mix = nn.Parameter(empty(1, width, 1, 1))
        side = grid
        for _ in range(convolutions):
            side = (side + 1) // 2
        self.weight = nn.Parameter(empty(side * side, features))
        self.reset_parameters()

    @property
    def kernels(self) -> list[Tensor]:
        """Of the 3x3 convolutions, in order."""
        return [getattr(self, name) for name in self._names]

    def reset_parameters(self) -> None:
        """Draw all weights so that a pixel's code stays of order 1."""
        for kernel in self.kernels:
            lecun_normal_(kernel, kernel.shape[1])
        lecun_normal_(self.mix, self.width)
        lecun_normal_(self.weight, 1)

    def _reference(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        from vt_fast.reference.position import conv_position_code

        return conv_position_code(attention, size, self.grid, self.kernels, self.mix, self.weight)

    def _cells(self) -> Tensor:
        sides = [self.grid]
        for _ in self._names:
            sides.append((sides[-1] + 1) // 2)
        maps = torch.unflatten(self.weight.t(), 1, (1, sides[-1], sides[-1]))
        maps = F.conv_transpose2d(maps, self.mix)
        for kernel, side in zip(reversed(self.kernels), reversed(sides[:-1]), strict=True):
            # The stride drops the last column of an even side; output_padding restores it.
            maps = F.conv_transpose2d(maps, kernel, stride=2, padding=1, output_padding=1 - side % 2)
        return maps.squeeze(1).permute(1, 2, 0)

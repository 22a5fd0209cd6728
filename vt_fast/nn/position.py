"""Position codes: where a token looks, as a few numbers, linear in its attention: they fold into a table."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vt_fast.nn.base import check_positive
from vt_fast.nn.init import lecun_normal_
from vt_fast.reference.position import conv_position_code, linear_position_code, resize_matrix


class PositionCode(nn.Module, ABC):
    """Base class: a linear map from a token's attention over the pixels to `features` numbers.

    A code is A^T E for a table E of (N, P) that depends on the parameters and the size of the map alone:
    so it is a second value operand of `tokenize`, pooled in the same pass. The weights start at order 1:
    attention that sits on one pixel gives numbers of order 1, attention spread evenly gives small ones.

    Args:
        grid: S, the attention is resized to S x S.
        features: P, numbers per token.
    """

    def __init__(self, grid: int, features: int) -> None:
        super().__init__()
        check_positive(grid=grid, features=features)
        self.grid, self.features = grid, features

    def table(self, height: int, width: int) -> Tensor:
        """E for a map of H x W: (N, P), row-major. Differentiable; takes H W P numbers, never N x N."""
        rows = resize_matrix(height, self.grid, *self._like())
        columns = resize_matrix(width, self.grid, *self._like())
        # One side at a time: all three in one einsum would form S S H W numbers on the way.
        stretched = torch.einsum("sh,stp->htp", rows, self._cells())
        return torch.einsum("tw,htp->hwp", columns, stretched).flatten(0, 1)

    @abstractmethod
    def code(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """The code as the paper writes it: attention (B, N, L) over a map of `size` (H, W) -> (B, L, P)."""

    @abstractmethod
    def _cells(self) -> Tensor:
        """The code of each cell of the S x S grid: (S, S, P)."""

    def _like(self) -> tuple[torch.dtype, torch.device]:
        parameter = next(self.parameters())
        return parameter.dtype, parameter.device

    def extra_repr(self) -> str:
        """Grid and features, for printing."""
        return f"grid={self.grid}, features={self.features}"


class LinearPositionCode(PositionCode):
    """The simple form: resize A to S x S bilinearly, multiply by W_{A->P}.

    Args:
        grid: S.
        features: P.

    Attributes:
        weight: (S S, P), W_{A->P}.

    Example:
        >>> LinearPositionCode(grid=14, features=49).table(28, 20).shape
        torch.Size([560, 49])
    """

    def __init__(self, grid: int = 14, features: int = 49) -> None:
        super().__init__(grid, features)
        self.weight = nn.Parameter(torch.empty(grid * grid, features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from a unit normal distribution."""
        lecun_normal_(self.weight, 1)

    def code(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """The code as the paper writes it: attention (B, N, L) over a map of `size` (H, W) -> (B, L, P)."""
        return linear_position_code(attention, size, self.grid, self.weight)

    def _cells(self) -> Tensor:
        return torch.unflatten(self.weight, 0, (self.grid, self.grid))


class ConvPositionCode(PositionCode):
    """The first version's form: A resized to S x S, n 3x3 convolutions of stride 2, a 1x1, a matrix.

    There is no activation between the convolutions (the paper names none), which keeps the code linear:
    the table is the transposed chain applied to the matrix.

    Args:
        grid: S; odd sides are rounded up by each stride.
        features: P.
        convolutions: n, at least 1.
        width: channels between the convolutions.

    Attributes:
        kernels: n tensors (width, 1 or width, 3, 3).
        mix: (1, width, 1, 1).
        weight: (Cp, P), Cp = S S / 4^n (49 for S = 14, n = 1).

    Example:
        >>> code = ConvPositionCode(grid=14, features=49)
        >>> code.weight.shape, code.table(28, 28).shape
        (torch.Size([49, 49]), torch.Size([784, 49]))
    """

    def __init__(self, grid: int = 14, features: int = 49, *, convolutions: int = 1, width: int = 8) -> None:
        super().__init__(grid, features)
        check_positive(convolutions=convolutions, width=width)
        self.width = width
        self.kernels = nn.ParameterList(
            torch.empty(width, 1 if index == 0 else width, 3, 3) for index in range(convolutions)
        )
        self.mix = nn.Parameter(torch.empty(1, width, 1, 1))
        side = grid
        for _ in range(convolutions):
            side = (side + 1) // 2
        self.weight = nn.Parameter(torch.empty(side * side, features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights so that a pixel's code stays of order 1."""
        for kernel in self.kernels:
            lecun_normal_(kernel, kernel.shape[1])
        lecun_normal_(self.mix, self.width)
        lecun_normal_(self.weight, 1)

    def code(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """The code as the paper writes it: attention (B, N, L) over a map of `size` (H, W) -> (B, L, P)."""
        return conv_position_code(attention, size, self.grid, list(self.kernels), self.mix, self.weight)

    def _cells(self) -> Tensor:
        sides = [self.grid]
        for _ in self.kernels:
            sides.append((sides[-1] + 1) // 2)
        maps = torch.unflatten(self.weight.t(), 1, (1, sides[-1], sides[-1]))
        maps = F.conv_transpose2d(maps, self.mix)
        for kernel, side in zip(reversed(list(self.kernels)), reversed(sides[:-1]), strict=True):
            # An even side loses its last column to the stride; the transpose has to be told to give it back.
            maps = F.conv_transpose2d(maps, kernel, stride=2, padding=1, output_padding=1 - side % 2)
        return maps.squeeze(1).permute(1, 2, 0)

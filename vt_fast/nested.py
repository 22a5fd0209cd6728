"""Nested tensors of PyTorch's jagged layout as bags: values and offsets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast import checks


class Bags:
    """A nested feature map (B, *, C) as x (total, C) and offsets; operands that are nested alike."""

    def __init__(self, x: Tensor, offsets: Any) -> None:
        if offsets is not None:
            raise ValueError("`offsets` must be None where `x` is nested, got a tensor")
        if x.dim() != 3 or x._ragged_idx != 1:  # type: ignore[attr-defined]
            raise ValueError(f"`x` must be (B, *, C) where it is nested, got {checks.shape(x)}")
        self.size = x.shape[1]
        self.x, self.offsets = self._parts("x", x, 1)

    def map(self, name: str, value: Any, dim: int = 1) -> Any:
        """The values of an operand that is nested like x in a dimension; others are returned."""
        if not isinstance(value, Tensor) or not value.is_nested:
            return value
        # Sizes of nested dimensions are equal where the offsets are the same tensor.
        jagged = value.layout == torch.jagged
        if not jagged or value.dim() <= dim or value.shape[dim] != self.size:
            raise ValueError(
                f"`{name}` must be nested as `x` is, in dimension {dim} and with the same offsets, got "
                f"{checks.shape(value) if jagged else value.layout}"
            )
        return self._parts(name, value, dim)[0]

    def nested(self, values: Tensor) -> Tensor:
        """A map (total, D) as a nested tensor (B, *, D)."""
        return torch.nested.nested_tensor_from_jagged(values, self.offsets)  # type: ignore[no-any-return]

    @staticmethod
    def _parts(name: str, value: Any, dim: int) -> tuple[Tensor, Tensor]:
        if value.lengths() is not None:
            raise ValueError(f"`{name}` must have no gaps between its bags where it is nested, got lengths")
        return value.values(), value.offsets()

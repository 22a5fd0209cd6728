"""Calls of the raw kernels, whose results lie in guarded memory and whose operands are watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MARGIN = 1024  # guarded elements in front and behind
BYTE = 0xA5  # what they hold; as numbers of any type: small and finite


class GuardedOps:
    """Stands in for torch.ops.vt_fast_cpu. Raises AssertionError where a kernel writes out of its results.

    ``holes``: elements of a result's innermost run are that many apart, and what lies between is guarded.
    Only maps may have holes; all else is dense. ``shift``: how many elements each result lies off its
    memory's alignment.
    """

    def __init__(self, ops: Any, holes: int = 1, shift: int = 0) -> None:
        self.ops, self.holes, self.shift = ops, holes, shift
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.ops, name).default
        return _Overload(lambda *args: self._call(function, args))

    def _call(self, function: Any, args: tuple[Any, ...]) -> None:
        self.calls += 1
        results, passed, watched = [], [], []
        for parameter, value in zip(function._schema.arguments, args, strict=True):
            if not isinstance(value, torch.Tensor):
                passed.append(value)
            elif parameter.alias_info is not None and parameter.alias_info.is_write:
                is_map = parameter.name in ("map", "dx", "dresidual")
                memory, view = _guarded(value, self.holes if is_map else 1, self.shift)
                results.append((parameter.name, value, memory, view))
                passed.append(view)
            else:
                watched.append((parameter.name, value, bytes_of(value).clone()))
                passed.append(value)
        function(*passed)
        for name, value, before in watched:
            assert torch.equal(bytes_of(value), before), f"{name} was changed"
        for name, value, memory, view in results:
            value.copy_(view)
            view.view(_bits(view)).fill_(_pattern(view))
            assert (memory.view(torch.uint8) == BYTE).all(), f"memory around {name} was written to"


class _Overload:
    """What torch calls an op's only overload."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.default = function


def bytes_of(value: torch.Tensor) -> torch.Tensor:
    """All of the memory that a tensor is part of."""
    storage = value.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def _bits(value: torch.Tensor) -> torch.dtype:
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]


def _pattern(value: torch.Tensor) -> int:
    return int.from_bytes(bytes([BYTE]) * value.element_size(), "little", signed=True)


def _guarded(like: torch.Tensor, holes: int, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory full of the pattern, and a view in it that holds NaN and has ``like``'s order of dimensions."""
    strides = [stride * holes for stride in like.stride()]
    extent = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, strides, strict=True))
    memory = torch.full((extent + 2 * MARGIN + shift,), 0, dtype=like.dtype)
    memory.view(torch.uint8).fill_(BYTE)
    view = memory.as_strided(like.shape, strides, MARGIN + shift)
    return memory, view.fill_(torch.nan)

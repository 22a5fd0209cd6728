"""Calls of the raw kernels that check memory: results are surrounded by guards, operands must not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MARGIN = 1024  # guard elements before and after a result
BYTE = 0xA5  # their bytes, a small finite number in any dtype


class GuardedOps:
    """Replaces torch.ops.vt_fast_cpu. Raises AssertionError if a kernel writes outside its results.

    ``holes``: neighbouring elements of a map are that many elements apart, with guards between them; other
    results are always dense. ``shift``: the offset of each result from an aligned address, in elements.
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
                is_map = parameter.name in ("map", "dx", "dresidual", "dpooled", "dscores")
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
    """Replaces an op's overload packet."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.default = function


def bytes_of(value: torch.Tensor) -> torch.Tensor:
    """The whole storage of a tensor."""
    storage = value.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))


def _bits(value: torch.Tensor) -> torch.dtype:
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]


def _pattern(value: torch.Tensor) -> int:
    return int.from_bytes(bytes([BYTE]) * value.element_size(), "little", signed=True)


def _guarded(like: torch.Tensor, holes: int, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory full of the pattern, and a view of NaN in it with ``like``'s order of dimensions."""
    strides = [stride * holes for stride in like.stride()]
    extent = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, strides, strict=True))
    memory = torch.full((extent + 2 * MARGIN + shift,), 0, dtype=like.dtype)
    memory.view(torch.uint8).fill_(BYTE)
    view = memory.as_strided(like.shape, strides, MARGIN + shift)
    return memory, view.fill_(torch.nan)

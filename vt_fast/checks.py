"""Argument checks of the public ops: every message names the argument, what it must be and what it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OPTIONAL = "None or a torch.Tensor"


def shape(value: Tensor) -> str:
    """``(2, 16, 128)``, readable for symbolic sizes too."""
    return "(" + ", ".join(str(size) for size in value.shape) + ("," if value.dim() == 1 else "") + ")"


def tensor(name: str, value: Any, kind: str = "a torch.Tensor") -> None:
    """A dense tensor of any dtype; ``kind`` is what a message says that it must be.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be {kind}, got {type(value).__name__}")
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested" if value.is_nested else f"a {value.layout}"
        raise TypeError(f"`{name}` must be a dense (torch.strided) tensor, got {kind} tensor")


def feature_map(name: str, value: Any) -> None:
    """A floating-point (B, N, C) or (B, C, H, W) tensor with no size of 0.

    Raises:
        TypeError: no dense tensor, or not float16, bfloat16, float32 or float64.
        ValueError: another rank, or an empty one.
    """
    tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"`{name}` must be float16, bfloat16, float32 or float64, got {value.dtype}")
    if value.dim() not in (3, 4):
        raise ValueError(f"`{name}` must be (B, N, C) or (B, C, H, W), got {shape(value)}")
    if any(size == 0 for size in value.shape):
        raise ValueError(f"`{name}` must have no size of 0 (leave an empty shard out), got {shape(value)}")


def operand(name: str, value: Any, x: Tensor, kind: str = "a torch.Tensor") -> None:
    """A dense tensor of x's dtype on x's device; ``kind`` as in :func:`tensor`.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device.
    """
    tensor(name, value, kind)
    if value.dtype != x.dtype:
        raise TypeError(f"`{name}` must have the dtype of `x` ({x.dtype}), got {value.dtype}")
    same_device(name, value, x)


def same_device(name: str, value: Tensor, x: Tensor) -> None:
    """On x's device.

    Raises:
        ValueError: it is not.
    """
    if value.device != x.device:
        raise ValueError(f"`{name}` must be on the device of `x` ({x.device}), got {value.device}")


def flag(name: str, value: Any) -> None:
    """A bool.

    Raises:
        TypeError: something else, even if Python takes it for true or false.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be a bool, got {type(value).__name__}")


def head_count(heads: Any) -> None:
    """A positive int.

    Raises:
        TypeError: not an int.
        ValueError: below 1.
    """
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise TypeError(f"`heads` must be an int, got {type(heads).__name__}")
    if heads < 1:
        raise ValueError(f"`heads` must be at least 1, got {heads}")


def divides(heads: int, size: int, what: str) -> None:
    """``heads`` divides ``size``.

    Raises:
        ValueError: it does not.
    """
    if size % heads != 0:
        raise ValueError(f"`heads` must divide {what} = {size}, got {heads}")


def bank(name: str, value: Any, x: Tensor, *, width: int, heads: int, form: str, origin: str = "") -> None:
    """Rows of a given width, shared (R, width) or per sample (B, R, width), R a multiple of heads.

    ``form`` is how a message writes the last two dimensions, as in ``"L, C"``, and ``origin`` where the
    width comes from, if that is not x.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    operand(name, value, x)
    if (
        value.dim() in (2, 3)
        and value.shape[-1] == width
        and value.shape[-2] > 0
        and value.shape[-2] % heads == 0
        and (value.dim() == 2 or value.shape[0] == x.shape[0])
    ):
        return
    rows, columns = form.split(", ")
    multiple = "" if heads == 1 else f"a multiple of heads = {heads} and "
    raise ValueError(
        f"`{name}` must be ({form}) or (B, {form}) with B = {x.shape[0]}, {columns} = {width}{origin} "
        f"and {rows} {multiple}not 0, got {shape(value)}"
    )


def channel_count(x: Tensor) -> int:
    """C of a map in either form."""
    return x.shape[-1] if x.dim() == 3 else x.shape[1]


def pixel_count(x: Tensor) -> int:
    """N of a map in either form."""
    return x.shape[1] if x.dim() == 3 else x.shape[2] * x.shape[3]


def map_shape(x: Tensor, channels: int) -> tuple[int, ...]:
    """The shape of a map like x with another number of channels."""
    return (*x.shape[:2], channels) if x.dim() == 3 else (x.shape[0], channels, *x.shape[2:])

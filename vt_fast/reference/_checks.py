"""Argument checks for the reference: it must refuse what broadcasting would quietly accept."""

from __future__ import annotations

import torch
from torch import Tensor


def _label(name: str) -> str:
    return name if name.startswith("the ") else f"`{name}`"


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` is a tensor of a floating-point dtype.

    Raises:
        TypeError: it is not a tensor, or its dtype is not a floating one.

    Example:
        >>> check_floating("tokens", torch.zeros(2, dtype=torch.int64))
        Traceback (most recent call last):
        TypeError: `tokens` must have a floating-point dtype, got torch.int64
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{_label(name)} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{_label(name)} must have a floating-point dtype, got {tensor.dtype}")


def check_shape(name: str, tensor: Tensor, **sizes: int | None) -> None:
    """Raise unless ``tensor`` is a floating-point tensor with the named sizes.

    The keywords name the dimensions in order; ``None`` leaves a size free. A name is an argument's, or "the
    ..." for what was computed from the arguments.

    Raises:
        TypeError: it is not a tensor, or its dtype is not a floating one.
        ValueError: wrong number of dimensions or a wrong size.

    Example:
        >>> check_shape("tokens", torch.zeros(2, 16, 128), B=2, L=None, CT=256)
        Traceback (most recent call last):
        ValueError: `tokens` must be (B, L, CT) with B = 2, CT = 256, got (2, 16, 128)
    """
    check_floating(name, tensor)
    fits = tensor.dim() == len(sizes) and all(
        size is None or size == actual for size, actual in zip(sizes.values(), tensor.shape, strict=True)
    )
    if not fits:
        known = ", ".join(f"{key} = {int(size)}" for key, size in sizes.items() if size is not None)
        form = f"({', '.join(sizes)})" + (f" with {known}" if known else "")
        raise ValueError(f"{_label(name)} must be {form}, got {tuple(tensor.shape)}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise unless ``value`` is an int and not below ``least``.

    Raises:
        TypeError: it is not an int (a bool is not one either).
        ValueError: it is below ``least``.

    Example:
        >>> check_count("heads", 0)
        Traceback (most recent call last):
        ValueError: `num_heads` must be at least 1, got 0
    """
    # A size read from a tensor is a SymInt under torch.compile and a tensor under torch.jit.trace.
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, Tensor)):
        raise TypeError(f"`{name}` must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")


def split_heads(name: str, tensor: Tensor, num_heads: int) -> Tensor:
    """Return (B, M, C) as (B, heads, M, C / num_heads): head h gets channels [h C / num_heads, (h + 1) C / num_heads).

    Raises:
        TypeError: ``num_heads`` is not an int.
        ValueError: ``num_heads`` is below 1 or does not divide the channels.

    Example:
        >>> split_heads("values", torch.arange(6.0).view(1, 1, 6), 3).tolist()
        [[[[0.0, 1.0]], [[2.0, 3.0]], [[4.0, 5.0]]]]
    """
    check_count("num_heads", num_heads)
    if tensor.shape[-1] % num_heads:
        raise ValueError(
            f"the channels of {name} must be divisible by `num_heads`, got {int(tensor.shape[-1])} and {num_heads}"
        )
    return torch.stack(tensor.chunk(num_heads, dim=-1), dim=1)


def join_heads(tensor: Tensor) -> Tensor:
    """Return (B, heads, M, C / num_heads) as (B, M, C), the inverse of `split_heads`.

    Example:
        >>> tensor = torch.rand(2, 5, 6)
        >>> torch.equal(join_heads(split_heads("values", tensor, 3)), tensor)
        True
    """
    return torch.cat(tensor.unbind(dim=1), dim=-1)

"""Shape checks of the reference, against silent broadcasting and unclear messages."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, **sizes: int | None) -> None:
    """Raise unless ``tensor`` has the named sizes.

    The keywords name the dimensions in order; ``None`` leaves a size free. ``name`` is an argument's, or "the
    ..." for a result computed from the arguments.

    Raises:
        TypeError: it is not a tensor.
        ValueError: wrong number of dimensions or a wrong size.

    Example:
        >>> check_shape("tokens", torch.zeros(2, 16, 128), B=2, L=None, CT=256)
        Traceback (most recent call last):
        ValueError: `tokens` must be (B, L, CT) with B = 2, CT = 256, got (2, 16, 128)
    """
    label = name if name.startswith("the ") else f"`{name}`"
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{label} must be a tensor, got {type(tensor).__name__}")
    if tensor.dim() != len(sizes) or any(
        size is not None and size != actual for size, actual in zip(sizes.values(), tensor.shape, strict=True)
    ):
        known = ", ".join(f"{key} = {int(size)}" for key, size in sizes.items() if size is not None)
        form = f"({', '.join(sizes)})" + (f" with {known}" if known else "")
        raise ValueError(f"{label} must be {form}, got {tuple(tensor.shape)}")


def check_rows(name: str, tensor: Tensor, batch: int, **sizes: int | None) -> None:
    """The same for rows that the batch shares, or with a leading dimension B.

    Raises:
        TypeError: it is not a tensor.
        ValueError: wrong number of dimensions or a wrong size.

    Example:
        >>> check_rows("filters", torch.zeros(3, 16, 128), 2, L=16, C=128)
        Traceback (most recent call last):
        ValueError: `filters` must be (B, L, C) with B = 2, L = 16, C = 128, got (3, 16, 128)
    """
    if isinstance(tensor, Tensor) and tensor.dim() > len(sizes):
        check_shape(name, tensor, B=batch, **sizes)
    else:
        check_shape(name, tensor, **sizes)


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise unless ``value`` is at least ``least``.

    Raises:
        ValueError: it is below.

    Example:
        >>> check_count("num_tokens", 0)
        Traceback (most recent call last):
        ValueError: `num_tokens` must be at least 1, got 0
    """
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")


def check_divides(name: str, divisor: int, what: str, size: int) -> None:
    """Raise unless ``divisor`` is positive and divides ``size``, which messages call ``what``.

    Raises:
        ValueError: it does not.

    Example:
        >>> check_divides("num_heads", 4, "the channels of `x`", 6)
        Traceback (most recent call last):
        ValueError: `num_heads` must divide the channels of `x` = 6, got 4
    """
    check_count(name, divisor)
    if size % divisor:
        raise ValueError(f"`{name}` must divide {what} = {int(size)}, got {divisor}")


def split_heads(name: str, tensor: Tensor, num_heads: int) -> Tensor:
    """Return (B, M, C) as (B, num_heads, M, C / num_heads): head h gets channel block h.

    Raises:
        ValueError: ``num_heads`` does not divide the channels.

    Example:
        >>> split_heads("values", torch.arange(6.0).view(1, 1, 6), 3).tolist()
        [[[[0.0, 1.0]], [[2.0, 3.0]], [[4.0, 5.0]]]]
    """
    check_divides("num_heads", num_heads, f"the channels of {name}", tensor.shape[-1])
    return torch.stack(tensor.chunk(num_heads, dim=-1), dim=1)


def join_heads(tensor: Tensor) -> Tensor:
    """Return (B, num_heads, M, C / num_heads) as (B, M, C), the inverse of `split_heads`.

    Example:
        >>> tensor = torch.rand(2, 5, 6)
        >>> torch.equal(join_heads(split_heads("values", tensor, 3)), tensor)
        True
    """
    return torch.cat(tensor.unbind(dim=1), dim=-1)

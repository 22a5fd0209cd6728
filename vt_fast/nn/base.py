"""What all modules share: the choice of backend, and the two forms a feature map may take."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vt_fast import backends, checks
from vt_fast.precision import FLOATING, autocast, autocast_enabled

REFERENCE = "reference"


class Module(nn.Module):
    """Base class of the package's modules: an `nn.Module` with a choice of backend.

    Args:
        backend: None lets `vt_fast.functional` choose; a name it knows ("torch", ...) is passed to it;
            "reference" runs the paper as it is written, through `vt_fast.reference`, with the same
            parameters. The choice is no part of the state dict. Setting the attribute of a module that
            contains others sets it on all of them.

    Raises:
        TypeError: `backend` is neither a string nor None.
        ValueError: no backend has that name. Whether it can run here is asked when it is to run.
    """

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    @property
    def backend(self) -> str | None:
        """The chosen backend; "mixed" where the members of a container differ."""
        return self._backend

    @backend.setter
    def backend(self, backend: str | None) -> None:
        check_backend(backend)
        self._backend = backend


class Container(Module):
    """A module made of other modules of this package: its backend is theirs."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    @property
    def backend(self) -> str | None:
        """The backend of all members, or "mixed" where they differ."""
        found = {leaf.backend for leaf in _leaves(self)}
        return found.pop() if len(found) == 1 else "mixed" if found else None

    @backend.setter
    def backend(self, backend: str | None) -> None:
        check_backend(backend)
        for member in self.children():
            set_backend(member, backend)


def check_backend(backend: str | None) -> None:
    """Raise unless `backend` is None, "reference" or the name of a backend of the ops."""
    if backend is None or backend == REFERENCE:
        return
    if not isinstance(backend, str):
        raise TypeError(f"`backend` must be None or a string, got {type(backend).__name__}")
    if backend not in backends.NAMES:
        known = ", ".join(f'"{name}"' for name in (REFERENCE, *backends.NAMES))
        raise ValueError(f'`backend` must be None or one of {known}, got "{backend}"')


def set_backend(module: nn.Module, backend: str | None) -> None:
    """Set the backend of every `vt_fast` module inside `module`, itself included.

    Args:
        module: any module, for example a whole network.
        backend: see :class:`Module`.

    Example:
        >>> import torch, vt_fast
        >>> net = torch.nn.Sequential(vt_fast.nn.FilterTokenizer(8, 4))
        >>> set_backend(net, "reference")
        >>> net[0].backend
        'reference'
    """
    check_backend(backend)
    for leaf in _leaves(module):
        leaf.backend = backend


def _leaves(module: nn.Module) -> Iterator[Module]:
    return (part for part in module.modules() if isinstance(part, Module) and not isinstance(part, Container))


def check_map(x: Tensor, module: nn.Module, channels: int) -> None:
    """Raise unless `x` is a feature map of `channels` channels that suits the parameters of `module`.

    Raises:
        TypeError: no dense tensor, no floating-point one, or (outside of autocast) of another dtype than the
            parameters.
        ValueError: neither (B, N, C) nor (B, C, H, W), other channels, or a size of 0.
    """
    checks.tensor("x", x)
    if x.dtype not in FLOATING:
        raise TypeError(f"`x` must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dim() not in (3, 4) or x.shape[1 if x.dim() == 4 else 2] != channels:
        raise ValueError(f"`x` must be (B, N, C) or (B, C, H, W) with C = {channels}, got {checks.shape(x)}")
    if any(size == 0 for size in x.shape):
        raise ValueError(f"`x` must have no size of 0, got {checks.shape(x)}")
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.dtype != x.dtype and not autocast_enabled(x.device.type):
        raise TypeError(
            f"`x` must have the dtype of the module's parameters ({parameter.dtype}), got {x.dtype}"
        )


def autocast_map(x: Tensor, module: Container) -> Tensor:
    """The map as the ops of `module` take it under autocast: cast once, it is kept once for the backward.

    Each op would make and keep a copy of its own. Not where a member runs the reference, which gets the
    map as it is.
    """
    if not isinstance(x, Tensor) or any(leaf.backend == REFERENCE for leaf in _leaves(module)):
        return x
    cast: Tensor = autocast(x)[0]
    return cast


def map_size(x: Tensor) -> tuple[int, int]:
    """(H, W) of a map; ValueError where it is (B, N, C), which does not say."""
    if x.dim() != 4:
        raise ValueError(f"`x` must be (B, C, H, W) where a position or a grid matters, got {tuple(x.shape)}")
    return x.shape[2], x.shape[3]


def check_tokens(
    tokens: Tensor | None, channels: int, count: int | None = None, x: Tensor | None = None
) -> Tensor:
    """Return `tokens` if they are (B, L, CT) with CT = `channels`, L = `count` and B that of `x`, or raise.

    Raises:
        TypeError: no dense tensor.
        ValueError: None, or another shape.
    """
    sizes = {"B": None if x is None else x.shape[0], "L": count, "CT": channels}
    if tokens is not None:
        checks.tensor("tokens", tokens)
        if tokens.dim() == 3 and all(
            size is None or size == actual for size, actual in zip(sizes.values(), tokens.shape, strict=True)
        ):
            return tokens
    known = ", ".join(f"{name} = {size}" for name, size in sizes.items() if size is not None)
    got = None if tokens is None else checks.shape(tokens)
    raise ValueError(f"`tokens` must be (B, L, CT) with {known}, got {got}")


def check_divides(divisor_name: str, divisor: int, **widths: int) -> None:
    """Raise ValueError unless `divisor` is positive and divides each of `widths`, named by its keyword."""
    for name, width in widths.items():
        if divisor < 1 or width % divisor:
            raise ValueError(f"`{divisor_name}` must divide {name} = {width}, got {divisor}")


def check_positive(**values: int) -> None:
    """Raise ValueError unless every value, named by its keyword, is at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")


def like_map(rows: Tensor, x: Tensor) -> Tensor:
    """The rows (B, N, D) in the form of `x`: (B, D, H, W) where that is 4-D, and in its memory format."""
    if x.dim() == 3:
        return rows
    return torch.unflatten(rows.transpose(1, 2), 2, x.shape[2:]).contiguous(memory_format=memory_format(x))


def maps_like(weights: Tensor, x: Tensor) -> Tensor:
    """Attention with pixels last, (..., N), as pictures (..., H, W) where `x` is a 4-D map."""
    return torch.unflatten(weights, -1, x.shape[2:]) if x.dim() == 4 else weights


def memory_format(x: Tensor) -> torch.memory_format:
    """The format in which a result should be laid out to match the 4-D map `x`."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format

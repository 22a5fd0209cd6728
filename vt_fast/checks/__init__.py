"""Argument checks: every message names the argument, what it must be and what it was.

Those of the three ops are in :mod:`vt_fast.checks.ops`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from vt_fast.backends import NAMES
from vt_fast.layout import channel_count
from vt_fast.precision import FLOATING, autocast_enabled


def shape(value: Tensor) -> str:
    """``(2, 16, 128)``, readable for symbolic sizes too."""
    return "(" + ", ".join(str(size) for size in value.shape) + ("," if value.dim() == 1 else "") + ")"


def holds(condition: Any) -> bool:
    """Whether a condition on sizes is true. If it depends on data, the program asserts it when it runs."""
    if not torch.compiler.is_compiling():
        return condition  # type: ignore[no-any-return]
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    if not guard_or_true(condition):
        return False
    torch._check(condition)
    return True


def same(sizes: Sequence[int], others: Sequence[int]) -> bool:
    """Whether two shapes are equal; see :func:`holds`."""
    return len(sizes) == len(others) and all(
        holds(size == other) for size, other in zip(sizes, others, strict=True)
    )


def tensor(name: str, value: Any, kind: str = "a torch.Tensor") -> None:
    """A dense tensor of any dtype; ``kind`` is what a message says that it must be.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be {kind}, got {type(value).__name__}{_way_out(value)}")
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested" if value.is_nested else f"a {value.layout}"
        raise TypeError(f"`{name}` must be a dense (torch.strided) tensor, got {kind} tensor")


def _way_out(value: Any) -> str:
    if not isinstance(value, Proxy):
        return ""
    return (
        ": torch.fx traces whole blocks, stacks and necks as one node, and no smaller part of them; list the "
        "module as a leaf of the tracer"
    )


def feature_map(name: str, value: Any, channels: int | None = None) -> None:
    """A floating-point (B, N, C) or (B, C, H, W) tensor with no size of 0 except B, and C as given.

    Raises:
        TypeError: no dense tensor, or not float16, bfloat16, float32 or float64.
        ValueError: another rank or number of channels, or an empty one.
    """
    floating(name, value)
    if value.dim() not in (3, 4) or (channels is not None and channel_count(value) != channels):
        known = "" if channels is None else f" with C = {channels}"
        raise ValueError(f"`{name}` must be (B, N, C) or (B, C, H, W){known}, got {shape(value)}")
    if not all(holds(size != 0) for size in value.shape[1:]):
        raise ValueError(
            f"`{name}` must have no size of 0 except B (leave an empty shard out), got {shape(value)}"
        )


def floating(name: str, value: Any) -> None:
    """A dense tensor of a dtype that maps can have.

    Raises:
        TypeError: it is not.
    """
    tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"`{name}` must be float16, bfloat16, float32 or float64, got {value.dtype}")


def number(name: str, value: Any) -> None:
    """A finite float, or an int in its range; symbolic ones pass.

    Raises:
        TypeError: something else, a tensor included.
        ValueError: NaN, infinite, or out of range.
    """
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a float, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # not math.isfinite, which a compiler cannot trace
        raise ValueError(f"`{name}` must be finite, got {value}")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"`{name}` must be in the range of a float, got an int of {value.bit_length()} bits")


def flag(name: str, value: Any, optional: bool = False) -> None:
    """A bool, or None where ``optional``.

    Raises:
        TypeError: something else, even if Python takes it for true or false.
    """
    if not isinstance(value, bool) and not (optional and value is None):
        kind = "None or a bool" if optional else "a bool"
        raise TypeError(f"`{name}` must be {kind}, got {type(value).__name__}")


def flags(**values: Any) -> None:
    """Bools, each named by its keyword; see :func:`flag`."""
    for name, value in values.items():
        flag(name, value)


def count(name: str, value: Any) -> None:
    """A positive int.

    Raises:
        TypeError: not an int.
        ValueError: below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}")


def counts(**values: Any) -> None:
    """Positive ints, each named by its keyword; see :func:`count`."""
    for name, value in values.items():
        count(name, value)


def divides(name: str, value: int, what: str, size: int) -> None:
    """``value`` divides ``size``, which messages call ``what``.

    Raises:
        ValueError: it does not.
    """
    if size % value != 0:
        raise ValueError(f"`{name}` must divide {what} = {size}, got {value}")


def merge(tokens: Any, lse: Any) -> None:
    """The two arguments of ``merge``: tokens (S, B, L, C) and lse (S, B, num_heads * L).

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device or shape.
    """
    floating("tokens", tokens)
    tensor("lse", lse)
    expected = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    if lse.dtype != expected:
        raise TypeError(f"`lse` must be {expected} for {tokens.dtype} tokens, got {lse.dtype}")
    if lse.device != tokens.device:
        raise ValueError(f"`lse` must be on the device of `tokens` ({tokens.device}), got {lse.device}")
    if tokens.dim() != 4 or not all(holds(tokens.shape[dim] != 0) for dim in (0, 2, 3)):
        raise ValueError(f"`tokens` must be (S, B, L, C), none of S, L and C 0, got {shape(tokens)}")
    count, channels = tokens.shape[2:]
    if (
        lse.dim() != 3
        or not same(lse.shape[:2], tokens.shape[:2])
        or lse.shape[2] == 0
        or lse.shape[2] % count != 0
        or channels % (lse.shape[2] // count) != 0
    ):
        raise ValueError(
            f"`lse` must be (S, B, num_heads * L) with S = {tokens.shape[0]}, B = {tokens.shape[1]}, "
            f"L = {count} and num_heads a divisor of C = {channels}, got {shape(lse)}"
        )


# For the modules.


def scale(value: Any, default: float) -> float:
    """Return the scale of the logits: a finite number, or ``default`` for None.

    Raises:
        TypeError: something else, a tensor included.
        ValueError: NaN or infinite.
    """
    if value is None:
        return default
    number("scale", value)
    return value  # type: ignore[no-any-return]


def choice(name: str, value: Any, choices: Iterable[str], optional: bool = False) -> None:
    """One of some strings, or None where ``optional``.

    Raises:
        ValueError: anything else.
    """
    if value in choices or (optional and value is None):
        return
    known = ", ".join(f'"{each}"' for each in choices) + (" or None" if optional else "")
    raise ValueError(f"`{name}` must be one of {known}, got {value!r}")


def backend(value: Any, *others: str) -> None:
    """None, the name of a backend or one of the others; whether it can run is asked when it is to run.

    Raises:
        TypeError: neither None nor a string.
        ValueError: another name.
    """
    if value is not None and not isinstance(value, str):
        raise TypeError(f"`backend` must be None or a string, got {type(value).__name__}")
    if value is not None and value not in (*others, *NAMES):
        known = ", ".join(f'"{name}"' for name in (*others, *NAMES))
        raise ValueError(f'`backend` must be None or one of {known}, got "{value}"')


def module_map(x: Any, channels: int, dtype: torch.dtype | None) -> None:
    """A feature map of C channels in the dtype of a module's parameters; None where it has none.

    Raises:
        TypeError: no dense tensor of a floating-point dtype, or, outside of autocast, of another one.
        ValueError: another shape, or a size of 0.
    """
    feature_map("x", x, channels)
    if dtype is not None and x.dtype != dtype and not autocast_enabled(x.device.type):
        raise TypeError(f"`x` must have the dtype of the module's parameters ({dtype}), got {x.dtype}")


def map_size(x: Tensor) -> tuple[int, int]:
    """(H, W) of a map.

    Raises:
        ValueError: it is (B, N, C), which does not say.
    """
    if x.dim() != 4:
        raise ValueError(f"`x` must be (B, C, H, W) where a position or a grid matters, got {shape(x)}")
    return x.shape[2], x.shape[3]


def tokens(value: Any, channels: int, num_tokens: int | None = None, x: Tensor | None = None) -> Tensor:
    """Return the tokens: a tensor (B, L, CT) with CT = ``channels``, L where given, B and dtype those of x.

    Raises:
        TypeError: no dense tensor, or, outside of autocast, of another dtype than x.
        ValueError: None, or another shape.
    """
    batch = None if x is None else x.shape[0]
    if value is not None:
        tensor("tokens", value)
        if x is not None and value.dtype != x.dtype and not autocast_enabled(x.device.type):
            raise TypeError(f"`tokens` must have the dtype of `x` ({x.dtype}), got {value.dtype}")
        if (
            value.dim() == 3
            and value.shape[2] == channels
            and (num_tokens is None or holds(value.shape[1] == num_tokens))
            and (batch is None or holds(value.shape[0] == batch))
        ):
            return value  # type: ignore[no-any-return]
    sizes = {"B": batch, "L": num_tokens, "CT": channels}
    known = ", ".join(f"{name} = {size}" for name, size in sizes.items() if size is not None)
    got = None if value is None else shape(value)
    raise ValueError(f"`tokens` must be (B, L, CT) with {known}, got {got}")


def features(name: str, value: Any, width: int) -> None:
    """A tensor (..., in).

    Raises:
        TypeError: no dense tensor.
        ValueError: another width.
    """
    tensor(name, value)
    if value.dim() == 0 or value.shape[-1] != width:
        raise ValueError(f"`{name}` must be (..., in) with in = {width}, got {shape(value)}")

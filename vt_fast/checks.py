"""Argument checks: every message names the argument, what it must be and what it was.

The functions named after an op check all of its arguments but x: :func:`feature_map` checks x first, since
autocast may cast it in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from vt_fast.backends import NAMES
from vt_fast.layout import channel_count, map_shape, pixel_count
from vt_fast.precision import FLOATING, autocast_enabled, compute_dtype

_OPTIONAL = "None or a torch.Tensor"


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
    tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"`{name}` must be float16, bfloat16, float32 or float64, got {value.dtype}")
    if value.dim() not in (3, 4) or (channels is not None and channel_count(value) != channels):
        known = "" if channels is None else f" with C = {channels}"
        raise ValueError(f"`{name}` must be (B, N, C) or (B, C, H, W){known}, got {shape(value)}")
    if not all(holds(size != 0) for size in value.shape[1:]):
        raise ValueError(
            f"`{name}` must have no size of 0 except B (leave an empty shard out), got {shape(value)}"
        )


def _operand(name: str, value: Any, x: Tensor, kind: str = "a torch.Tensor") -> None:
    """A dense tensor of x's dtype on x's device; ``kind`` as in :func:`tensor`.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device.
    """
    tensor(name, value, kind)
    if value.dtype != x.dtype:
        raise TypeError(f"`{name}` must have the dtype of `x` ({x.dtype}), got {value.dtype}")
    _same_device(name, value, x)


def _bias(name: str, value: Any, x: Tensor) -> None:
    """A dense tensor on x's device, in x's dtype or in the dtype that x is summed in.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device.
    """
    tensor(name, value, _OPTIONAL)
    exact = compute_dtype(x.dtype)
    if value.dtype != x.dtype and value.dtype != exact:
        also = "" if exact == x.dtype else f" or {exact}"
        raise TypeError(f"`{name}` must have the dtype of `x` ({x.dtype}){also}, got {value.dtype}")
    _same_device(name, value, x)


def _same_device(name: str, value: Tensor, x: Tensor) -> None:
    """On x's device.

    Raises:
        ValueError: it is not.
    """
    if value.device != x.device:
        raise ValueError(f"`{name}` must be on the device of `x` ({x.device}), got {value.device}")


def number(name: str, value: Any) -> None:
    """A finite int or float; symbolic ones pass.

    Raises:
        TypeError: something else, a tensor included.
        ValueError: NaN or infinite.
    """
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a float, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # not math.isfinite, which a compiler cannot trace
        raise ValueError(f"`{name}` must be finite, got {value}")


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


def _rows(
    name: str, value: Any, x: Tensor, *, width: int, num_heads: int, form: str, origin: str = ""
) -> None:
    """Rows of a given width, shared (R, width) or per sample (B, R, width), R a multiple of heads.

    ``form`` is how a message writes the last two dimensions, as in ``"L, C"``, and ``origin`` where the
    width comes from, if that is not x.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    _operand(name, value, x)
    if (
        value.dim() in (2, 3)
        and value.shape[-1] == width
        and holds(value.shape[-2] > 0)
        and holds(value.shape[-2] % num_heads == 0)
        and (value.dim() == 2 or holds(value.shape[0] == x.shape[0]))
    ):
        return
    rows, columns = form.split(", ")
    multiple = "" if num_heads == 1 else f"a multiple of num_heads = {num_heads} and "
    raise ValueError(
        f"`{name}` must be ({form}) or (B, {form}) with B = {x.shape[0]}, {columns} = {width}{origin} "
        f"and {rows} {multiple}not 0, got {shape(value)}"
    )


def tokenize(x: Tensor, queries: Any, num_heads: Any, mask: Any, pixel_bias: Any, extra_values: Any) -> None:
    """All arguments of tokenize but x itself.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device.
    """
    count("num_heads", num_heads)
    channels = channel_count(x)
    divides("num_heads", num_heads, "the channels of `x`, C", channels)
    form = "L, C" if num_heads == 1 else "num_heads * L, C / num_heads"
    _rows("queries", queries, x, width=channels // num_heads, num_heads=num_heads, form=form)
    _pixel_options(x, mask, pixel_bias, extra_values, num_heads)


def project(x: Tensor, keys: Any, values: Any, num_heads: Any, token_bias: Any, residual: Any) -> None:
    """All arguments of project but x itself.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device.
    """
    count("num_heads", num_heads)
    form = "L, C" if num_heads == 1 else "num_heads * L, C"
    _rows("keys", keys, x, width=channel_count(x), num_heads=num_heads, form=form)
    _check_values(values, keys, x, num_heads)
    if token_bias is not None:
        _check_token_bias(token_bias, keys, x, num_heads)
    _check_residual(residual, x, values.shape[-1])


def project_tokenize(
    x: Tensor,
    keys: Any,
    values: Any,
    queries: Any,
    num_heads: Any,
    token_bias: Any,
    residual: Any,
    mask: Any,
    pixel_bias: Any,
    extra_values: Any,
) -> None:
    """All arguments of project_tokenize but x itself.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape or device.
    """
    project(x, keys, values, num_heads, token_bias, residual)
    origin = ", the channels of `values`,"
    _rows("queries", queries, x, width=values.shape[-1], num_heads=1, form="Lq, D", origin=origin)
    _pixel_options(x, mask, pixel_bias, extra_values, 1)


def _pixel_options(x: Tensor, mask: Any, pixel_bias: Any, extra_values: Any, num_heads: int) -> None:
    if mask is not None:
        _check_mask(mask, x)
    if pixel_bias is not None:
        _check_pixel_bias(pixel_bias, x)
    if extra_values is not None:
        _check_extra_values(extra_values, x, num_heads)


def _check_values(values: Any, keys: Tensor, x: Tensor, num_heads: int) -> None:
    """Values (L, D) or (B, L, D) for keys of num_heads * L rows, D a multiple of heads.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    _operand("values", values, x)
    tokens = keys.shape[-2] // num_heads
    if (
        values.dim() not in (2, 3)
        or values.shape[-1] == 0
        or not holds(values.shape[-2] == tokens)
        or (values.dim() == 3 and not holds(values.shape[0] == x.shape[0]))
    ):
        raise ValueError(
            f"`values` must be (L, D) or (B, L, D) with B = {x.shape[0]}, L = {tokens} (`keys` has "
            f"{keys.shape[-2]} rows, `num_heads` is {num_heads}) and D not 0, got {shape(values)}"
        )
    divides("num_heads", num_heads, "the channels of `values`, D", values.shape[-1])


def _check_token_bias(token_bias: Any, keys: Tensor, x: Tensor, num_heads: int) -> None:
    """A bias for each row of the keys: (R,) or (B, R), in x's dtype or that of its sums.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device or shape.
    """
    _bias("token_bias", token_bias, x)
    rows, batch = keys.shape[-2], x.shape[0]
    # No comparison of the batch with the rows, which an exporter would turn into a constraint.
    if (
        token_bias.dim() not in (1, 2)
        or not holds(token_bias.shape[-1] == rows)
        or (token_bias.dim() == 2 and not holds(token_bias.shape[0] == batch))
    ):
        count = "L" if num_heads == 1 else "num_heads * L"
        raise ValueError(
            f"`token_bias` must be ({count},) or (B, {count}) with B = {batch}, {count} = {rows}, "
            f"got {shape(token_bias)}"
        )


def _check_residual(residual: Any, x: Tensor, channels: int) -> None:
    """None, or a map like x with ``channels`` channels.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    if residual is None or (residual is x and channels == channel_count(x)):
        return
    _operand("residual", residual, x, _OPTIONAL)
    expected = map_shape(x, channels)
    if not same(residual.shape, expected):
        form = "(B, N, D)" if x.dim() == 3 else "(B, D, H, W)"
        sizes = "(" + ", ".join(str(size) for size in expected) + ")"
        raise ValueError(f"`residual` must be {form} = {sizes}, got {shape(residual)}")


def _check_mask(mask: Any, x: Tensor) -> None:
    """A bool tensor (B, N) or, for a (B, C, H, W) map, also (B, H, W).

    Raises:
        TypeError: no dense tensor, or not bool.
        ValueError: another device or shape.
    """
    tensor("mask", mask, _OPTIONAL)
    if mask.dtype != torch.bool:
        raise TypeError(
            "`mask` must be a bool tensor, True where the pixel takes part "
            f"(soft or differentiable masks: `pixel_bias`), got {mask.dtype}"
        )
    _same_device("mask", mask, x)
    _per_pixel("mask", mask, x)


def _check_pixel_bias(pixel_bias: Any, x: Tensor) -> None:
    """A bias for each pixel: (B, N) or, for a (B, C, H, W) map, also (B, H, W); dtypes as for the other bias.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device or shape.
    """
    _bias("pixel_bias", pixel_bias, x)
    _per_pixel("pixel_bias", pixel_bias, x)


def _per_pixel(name: str, value: Tensor, x: Tensor) -> None:
    batch, pixels = x.shape[0], pixel_count(x)
    if same(value.shape, (batch, pixels)):
        return
    if x.dim() == 4 and same(value.shape, (batch, *x.shape[2:])):
        return
    form = f"(B, N) with B = {batch}, N = {pixels}"
    if x.dim() == 4:
        form = f"(B, N) or (B, H, W) with B = {batch}, H = {x.shape[2]}, W = {x.shape[3]}, N = H W = {pixels}"
    raise ValueError(f"`{name}` must be {form}, got {shape(value)}")


def _check_extra_values(extra_values: Any, x: Tensor, num_heads: int) -> None:
    """A table (N, P) of x's dtype, with one head only.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape, or more than one head.
    """
    _operand("extra_values", extra_values, x, _OPTIONAL)
    pixels = pixel_count(x)
    if extra_values.dim() != 2 or not holds(extra_values.shape[0] == pixels) or extra_values.shape[1] == 0:
        raise ValueError(
            f"`extra_values` must be (N, P) with N = {pixels} and P at least 1, got {shape(extra_values)}"
        )
    if num_heads != 1:
        raise ValueError(f"`num_heads` must be 1 where `extra_values` is given, got {num_heads}")


def merge(tokens: Any, lse: Any) -> None:
    """The two arguments of ``merge``: tokens (S, B, L, C) and lse (S, B, num_heads * L).

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device or shape.
    """
    tensor("tokens", tokens)
    tensor("lse", lse)
    if tokens.dtype not in FLOATING:
        raise TypeError(f"`tokens` must be float16, bfloat16, float32 or float64, got {tokens.dtype}")
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

"""The checks of the ops' arguments.

:func:`bags` checks x and the offsets first, since autocast may cast x in between; :func:`tokenize`,
:func:`project` and :func:`project_tokenize` check all other arguments of a call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vt_fast.backends.contract import Project, ProjectTokenize, Tokenize, row_count, sees_block, sums_heads
from vt_fast.checks import choice, count, divides, feature_map, floating, holds, number, same, shape, tensor
from vt_fast.layout import channel_count, map_shape, pixel_count, sample_count
from vt_fast.precision import compute_dtype

_OPTIONAL = "None or a torch.Tensor"


def bags(x: Any, offsets: Any) -> None:
    """A feature map, or with offsets bags (total, C), in which total may be 0.

    What the offsets hold is checked when the op runs, since it is data.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another shape or device.
    """
    if isinstance(x, Tensor) and x.is_nested and x.layout == torch.strided:
        raise TypeError(
            "`x` must have layout=torch.jagged where it is nested "
            "(torch.nested.as_nested_tensor(list(x.unbind()), layout=torch.jagged)), got torch.strided"
        )
    if offsets is None:
        feature_map("x", x)
        return
    floating("x", x)
    tensor("offsets", offsets, _OPTIONAL)
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"`offsets` must be int32 or int64, got {offsets.dtype}")
    if x.dim() != 2 or not holds(x.shape[1] != 0):
        raise ValueError(f"`x` must be (total, C) with C not 0 where `offsets` is given, got {shape(x)}")
    if offsets.dim() != 1 or not holds(offsets.shape[0] != 0):
        raise ValueError(f"`offsets` must be (B + 1,), got {shape(offsets)}")
    _same_device("offsets", offsets, x)


def tokenize(call: Tokenize) -> None:
    """All arguments of tokenize but x and the offsets.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape, value or device.
    """
    x, num_heads, channels = call.x, call.num_heads, channel_count(call.x)
    count("num_heads", num_heads)
    choice("normalize", call.normalize, ("pixels", "tokens"), optional=True)
    rows = _check_rows_and_scores("queries", call)
    _check_pixel_options(x, call.mask, call.pixel_bias)
    if call.token_bias is not None:
        _check_token_bias(call.token_bias, rows, call)
    if call.values is not None:
        _check_pooled_values(call.values, x)
        if sees_block(call.queries, channels, num_heads):
            divides("num_heads", num_heads, "the channels of `values`, D", channel_count(call.values))
    if call.extra_values is not None:
        _check_extra_values(call.extra_values, x, num_heads)
        _needs_pixels("extra_values", call.normalize)
        if call.offsets is not None:
            raise ValueError("`extra_values` must be None where `offsets` is given, got a tensor")
    if call.layer_norm_eps is not None:
        layer_norm_eps(call.layer_norm_eps)
        _needs_pixels("layer_norm_eps", call.normalize)
        if call.values is not None:
            raise ValueError("`layer_norm_eps` must be None where `values` is given, got a number")


def layer_norm_eps(value: Any) -> None:
    """A finite number above 0.

    Raises:
        TypeError: something else than a number, a tensor included.
        ValueError: another number.
    """
    number("layer_norm_eps", value)
    if not value > 0:
        raise ValueError(f"`layer_norm_eps` must be above 0, got {value}")


def project(call: Project | ProjectTokenize) -> None:
    """All arguments of project but x and the offsets, or those of this half of project_tokenize.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape, value or device.
    """
    count("num_heads", call.num_heads)
    if isinstance(call, Project):
        choice("normalize", call.normalize, ("tokens", "exp"), optional=True)
    rows = _check_rows_and_scores("keys", call)
    _check_values(call.values, rows, call)
    if call.token_bias is not None:
        _check_token_bias(call.token_bias, rows, call)
    _check_residual(call.x if call.residual_is_input else call.residual, call.x, call.values.shape[-1])


def project_tokenize(call: ProjectTokenize) -> None:
    """All arguments of project_tokenize but x.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: an argument of another shape, value or device.
    """
    project(call)
    x, width, queries = call.x, call.values.shape[-1], call.queries
    _operand("queries", queries, x)
    if not _are_rows(queries, x.shape[0], (width,), 1):
        raise ValueError(
            f"`queries` must be (Lq, D) or (B, Lq, D) with B = {x.shape[0]}, D = {width}, the channels of "
            f"`values`, and Lq not 0, got {shape(queries)}"
        )
    _check_pixel_options(x, call.mask, call.pixel_bias)
    if call.extra_values is not None:
        _check_extra_values(call.extra_values, x, 1)


def _operand(name: str, value: Any, x: Tensor, kind: str = "a torch.Tensor") -> None:
    """A dense tensor of x's dtype on x's device; ``kind`` is what a message says that it must be.

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


def _needs_pixels(name: str, normalize: str | None) -> None:
    if normalize != "pixels":
        raise ValueError(f'`normalize` must be "pixels" where `{name}` is given, got {normalize!r}')


def _are_rows(value: Tensor, batch: int, widths: tuple[int, ...], num_heads: int) -> bool:
    """Whether these are rows of one of the widths, shared (R, width) or per sample (B, R, width)."""
    return bool(
        value.dim() in (2, 3)
        and any(value.shape[-1] == width for width in widths)  # a compiler cannot trace `in`
        and holds(value.shape[-2] > 0)
        and holds(value.shape[-2] % num_heads == 0)
        and (value.dim() == 2 or holds(value.shape[0] == batch))
    )


def _check_rows_and_scores(name: str, call: Any) -> int:
    """Return num_heads * L by the rows, or, where there are none, by the scores.

    Raises:
        TypeError: no dense tensor, another dtype, or neither of them.
        ValueError: another device or shape.
    """
    x, num_heads, channels = call.x, call.num_heads, channel_count(call.x)
    rows, scores, offsets = getattr(call, name), getattr(call, "scores", None), getattr(call, "offsets", None)
    if rows is None and scores is None and hasattr(call, "scores"):
        raise TypeError(f"`{name}` or `scores` must be given, got None for both")
    if rows is not None or scores is None:
        _operand(name, rows, x)
        if rows.dim() in (2, 3) and rows.shape[-1] != channels:
            divides("num_heads", num_heads, "the channels of `x`, C", channels)
        batch = sample_count(x, offsets)
        if not _are_rows(rows, batch, (channels, channels // num_heads), num_heads):
            form = f"(L, C) or (B, L, C) with B = {batch}, C = {channels} and L not 0"
            if num_heads > 1:
                block = "" if channels % num_heads else f" or C / num_heads = {channels // num_heads}"
                form = (
                    f"(R, W) or (B, R, W) with B = {batch}, R a multiple of num_heads = {num_heads} and not "
                    f"0, and W = C = {channels}{block}"
                )
            raise ValueError(f"`{name}` must be {form}, got {shape(rows)}")
    if scores is not None:
        _check_scores(scores, None if rows is None else rows.shape[-2], call)
    return row_count(rows, scores, offsets)


def _check_scores(scores: Any, rows: int | None, call: Any) -> None:
    """Scores (B, R, N) or (B, R, H, W), with offsets (R, total); R a multiple of num_heads.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device or shape.
    """
    x, num_heads = call.x, call.num_heads
    _bias("scores", scores, x)
    pixels, lead = pixel_count(x), () if call.offsets is not None else (x.shape[0],)
    forms = [(*lead, pixels)] + ([(*lead, *x.shape[2:])] if x.dim() == 4 else [])
    at = len(lead)
    if scores.dim() > at:
        given, found = (*scores.shape[:at], *scores.shape[at + 1 :]), scores.shape[at]
        fits = found == rows if rows is not None else found % num_heads == 0
        if any(same(given, form) for form in forms) and holds(found > 0) and holds(fits):
            return
    known = f"R = {rows}" if rows is not None else f"R a multiple of num_heads = {num_heads} and not 0"
    form = f"(R, total) with {known}, total = {pixels}"
    if lead:
        also = f" or (B, R, H, W) with H = {x.shape[2]}, W = {x.shape[3]}," if x.dim() == 4 else " with"
        form = f"(B, R, N){also} B = {x.shape[0]}, {known}, N = {pixels}"
    raise ValueError(f"`scores` must be {form}, got {shape(scores)}")


def _check_values(values: Any, rows: int, call: Any) -> None:
    """Values (L, D) or (B, L, D), D a multiple of heads, or of num_heads * L rows, which are summed.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    x, num_heads, batch = call.x, call.num_heads, sample_count(call.x, getattr(call, "offsets", None))
    _operand("values", values, x)
    tokens = rows // num_heads
    if (
        values.dim() not in (2, 3)
        or values.shape[-1] == 0
        or not (sums_heads(values, rows, num_heads) or holds(values.shape[-2] == tokens))
        or (values.dim() == 3 and not holds(values.shape[0] == batch))
    ):
        also = "" if num_heads == 1 else f" or, to sum the heads, {rows}"
        source = "scores" if call.keys is None else "keys"
        raise ValueError(
            f"`values` must be (L, D) or (B, L, D) with B = {batch}, L = {tokens}{also} (`{source}` has "
            f"{rows} rows, `num_heads` is {num_heads}) and D not 0, got {shape(values)}"
        )
    if not sums_heads(values, rows, num_heads):
        divides("num_heads", num_heads, "the channels of `values`, D", values.shape[-1])


def _check_pooled_values(values: Any, x: Tensor) -> None:
    """A map like x with any number of channels but 0.

    Raises:
        TypeError: no dense tensor, or another dtype than x.
        ValueError: another device or shape.
    """
    _operand("values", values, x, _OPTIONAL)
    if values.dim() != x.dim() or channel_count(values) == 0 or not _is_map_like(values, x):
        form = {2: "(total, D)", 3: "(B, N, D)", 4: "(B, D, H, W)"}[x.dim()]
        raise ValueError(
            f"`values` must be {form} with the pixels of `x` {shape(x)} and D not 0, got {shape(values)}"
        )


def _is_map_like(value: Tensor, x: Tensor) -> bool:
    return same(value.shape, map_shape(x, channel_count(value)))


def _check_token_bias(token_bias: Any, rows: int, call: Any) -> None:
    """A bias for each row: (R,) or (B, R), in x's dtype or that of its sums.

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device or shape.
    """
    batch = sample_count(call.x, getattr(call, "offsets", None))
    _bias("token_bias", token_bias, call.x)
    # No comparison of the batch with the rows, which an exporter would turn into a constraint.
    if (
        token_bias.dim() not in (1, 2)
        or not holds(token_bias.shape[-1] == rows)
        or (token_bias.dim() == 2 and not holds(token_bias.shape[0] == batch))
    ):
        count = "L" if call.num_heads == 1 else "num_heads * L"
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
        form = {2: "(total, D)", 3: "(B, N, D)", 4: "(B, D, H, W)"}[x.dim()]
        sizes = "(" + ", ".join(str(size) for size in expected) + ")"
        raise ValueError(f"`residual` must be {form} = {sizes}, got {shape(residual)}")


def _check_pixel_options(x: Tensor, mask: Any, pixel_bias: Any) -> None:
    """A bool mask, and a bias for each pixel: (B, N) or, for a (B, C, H, W) map, also (B, H, W).

    Raises:
        TypeError: no dense tensor, or another dtype.
        ValueError: another device or shape.
    """
    if mask is not None:
        tensor("mask", mask, _OPTIONAL)
        if mask.dtype != torch.bool:
            raise TypeError(
                "`mask` must be a bool tensor, True where the pixel takes part "
                f"(soft or differentiable masks: `pixel_bias`), got {mask.dtype}"
            )
        _same_device("mask", mask, x)
        _per_pixel("mask", mask, x)
    if pixel_bias is not None:
        _bias("pixel_bias", pixel_bias, x)
        _per_pixel("pixel_bias", pixel_bias, x)


def _per_pixel(name: str, value: Tensor, x: Tensor) -> None:
    pixels = pixel_count(x)
    if x.dim() == 2:
        if not same(value.shape, (pixels,)):
            raise ValueError(f"`{name}` must be (total,) with total = {pixels}, got {shape(value)}")
        return
    batch = x.shape[0]
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

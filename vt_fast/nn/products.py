"""Products of tokens with weights, by oneDNN where that is faster than the library PyTorch takes.

On a CPU, PyTorch hands products in float32 to MKL. With the few rows that tokens are, oneDNN, which PyTorch
contains too, reaches more of the rate of AMD's Zen 4 and Zen 5, above all with two threads. Other processors
have not been measured. Results differ by rounding alone.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack  # type: ignore[attr-defined]
from torch.utils._device import DeviceContext

from vt_fast.nn.frozen import kept
from vt_fast.nn.traced import interposed
from vt_fast.precision import any_autocast

# Products of fewer multiplications gain less than a call of oneDNN costs (10 us); MKL is as fast with few
# rows or columns.
_LEAST, _LEAST_ROWS = 1 << 23, 8
# oneDNN keeps code and a buffer for each size of a product. Sizes that come later are left to PyTorch.
_MOST_BYTES = 128 << 20


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, keeper: nn.Module | None = None
) -> Tensor:
    """`F.linear`: x (..., in) times the transpose of the weight (out, in), plus the bias (out,).

    Where the module `keeper` is frozen (:func:`vt_fast.nn.freeze`), it keeps the weight in oneDNN's order.
    """
    if not _suits_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    # A weight that is computed is another one in each call.
    if keeper is None or not isinstance(weight, nn.Parameter):
        return _product(x, weight, bias)
    packed = kept(keeper, "packed", (weight,), lambda: _packed(weight), otherwise=lambda: weight)
    return _product(x, packed, bias)


def matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix`: x (..., in) times a matrix (in, out)."""
    if not _suits_onednn(x, matrix.t(), None):
        return x @ matrix
    return _product(x, matrix.t(), None)


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a product is large enough for oneDNN, and nothing looks at it but autograd."""
    # Small products are the ones that should not wait for all the questions.
    if torch.compiler.is_compiling() or interposed() or type(x) is not Tensor:
        return False
    if x.numel() * weight.shape[0] < _LEAST:
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(type(value) in (Tensor, nn.Parameter) for value in given)
        and all(value.dtype == torch.float32 and value.is_cpu for value in given)
        and all(value.layout == torch.strided for value in given)
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1]
        and x.stride(-1) == 1
        and min(x.numel() // x.shape[-1], weight.shape[0]) >= _LEAST_ROWS
        # oneDNN takes seconds where rows of weights have gaps, and reads any bias as dense and of this size.
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
        and not any_autocast()
        # Other modes may have something of their own to do where F.linear is called.
        and all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())
        and forward_ad._current_level < 0
        and bool(torch.backends.mkldnn.enabled)  # type: ignore[attr-defined]
        and _has_onednn()
        and _sizes.has_room(x.numel() // x.shape[-1], weight)
    )


class _Sizes:
    """The sizes of products that oneDNN has been given, and about what it keeps for them."""

    def __init__(self) -> None:
        self.known: set[tuple[int | bool, ...]] = set()
        self.bytes = 0

    def has_room(self, rows: int, weight: Tensor) -> bool:
        """Whether oneDNN may multiply so many rows with such a weight."""
        key = (rows, *weight.shape, weight.is_contiguous())
        if key not in self.known:
            if self.bytes + weight.nbytes > _MOST_BYTES:
                return False
            self.known.add(key)
            self.bytes += weight.nbytes
        return True


_sizes = _Sizes()


@functools.cache
def _has_onednn() -> bool:
    """Whether PyTorch has oneDNN's product here."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _packed(weight: Tensor) -> Tensor:
    """The weight in oneDNN's order, which nothing but oneDNN can read. It is kept where no gradients are."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())  # type: ignore[no-any-return]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product, with gradients where they are wanted."""
    given = (x, weight) if bias is None else (x, weight, bias)
    if not (torch.is_grad_enabled() and any(value.requires_grad for value in given)):
        return _run(x, weight, bias)
    y = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]


def _run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product, of which autograd knows nothing."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """oneDNN's product of a matrix x with gradients, which can be differentiated in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _run(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, _, of_bias = ctx.needs_input_grad
        return (
            None if weight is None else matmul(grad, weight),
            None if x is None else grad.t() @ x,  # MKL is as fast here
            grad.sum(0) if of_bias else None,
        )

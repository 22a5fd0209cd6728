"""Products of tokens with weights, by oneDNN where that is faster than the library PyTorch takes.

On a CPU, PyTorch hands products in float32 to MKL. On processors of AMD, oneDNN, which PyTorch contains too,
reaches more of the machine's rate with the few rows that tokens are: see "Tokens" in the guide on benchmarks.
Results differ by rounding alone.
"""

from __future__ import annotations

import functools
import platform
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn import functional as F

from vt_fast.nn.frozen import kept
from vt_fast.precision import any_autocast

#: Products of fewer multiplications gain less than a call of oneDNN costs (10 us).
LEAST = 1 << 23


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, keeper: nn.Module | None = None
) -> Tensor:
    """`F.linear`: x (..., in) times the transpose of the weight (out, in), plus the bias (out,).

    Where the module `keeper` is frozen (:func:`vt_fast.nn.freeze`), it keeps the weight in oneDNN's order.
    """
    if not _suits_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    if keeper is not None and isinstance(weight, nn.Parameter):
        weight = kept(keeper, "packed", (weight,), partial(_packed, weight), otherwise=lambda: weight)
    return _product(x, weight, bias)


def matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix`: x (..., in) times a matrix (in, out)."""
    transpose = matrix.t()
    return _product(x, transpose, None) if _suits_onednn(x, transpose, None) else x @ matrix


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a product is large enough for oneDNN, and nothing looks at it but autograd."""
    given = (x, weight) if bias is None else (x, weight, bias)
    if torch.compiler.is_compiling() or is_tracing() or any(type(value) not in _PLAIN for value in given):
        return False
    return (
        x.numel() * weight.shape[0] >= LEAST
        and all(value.dtype == torch.float32 and value.is_cpu for value in given)
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1]
        # oneDNN takes seconds for weights with gaps between rows, and reads a bias as if it had none.
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and (bias is None or bias.is_contiguous())
        and not any_autocast()
        # Modes, such as one that counts FLOPs, know PyTorch's own ops.
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and bool(torch.backends.mkldnn.enabled)  # type: ignore[attr-defined]
        and _has_onednn()
    )


_PLAIN = (Tensor, nn.Parameter)


@functools.cache
def _has_onednn() -> bool:
    """Whether PyTorch has oneDNN's product, on a processor for which it has been measured."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())  # type: ignore[no-any-return]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    given = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(value.requires_grad for value in given):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return _run(x, weight, bias)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """oneDNN's product with gradients, which can be differentiated in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _run(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, _, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            None if weight is None else matmul(grad, weight),
            None if x is None else rows.t() @ x.flatten(0, -2),  # MKL is as fast here
            rows.sum(0) if of_bias else None,
        )

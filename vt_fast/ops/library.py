"""Registration of an op and of its backward with ``torch.library``, the same way for all of them."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit import is_tracing  # type: ignore[attr-defined]

from vt_fast.backends import load
from vt_fast.backends.contract import Backend
from vt_fast.precision import without_autocast

# The records that hold an op's arguments, see vt_fast.backends.contract.
R = TypeVar("R")
F = TypeVar("F")
B = TypeVar("B")

# Whether the table of :mod:`vt_fast.onnx` has been made, so that an export may have it.
onnx_table_exists = False

LIBRARY = torch.library.Library("vt_fast", "FRAGMENT")

# Fake kernels derive a map's strides from the input's, so a compiler must not change those.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


class DifferentiableOp:
    """A forward op together with its backward op, callable with the forward's arguments.

    In eager mode a call goes through a ``torch.autograd.Function``, which costs less than
    ``torch.library.register_autograd``. Compilers, exporters and tracers get the raw op, which
    carries the same formula, so that it stays one node in their graphs.
    """

    def __init__(
        self,
        name: str,
        *,
        forward: Callable[[F, Backend], Any],
        forward_record: Callable[..., F],
        forward_schema: str,
        forward_fake: Callable[[F], Any],
        forward_flops: Callable[[F], int],
        backward: Callable[[B, Backend], Any],
        backward_record: Callable[..., B],
        backward_schema: str,
        backward_fake: Callable[[B], Any],
        backward_flops: Callable[[B], int],
        setup_context: Callable[[Any, tuple[Any, ...], Any], None],
        derivative: Callable[..., Any],
    ) -> None:
        self.name = name
        self.raw = _define(name, forward_schema, forward_record, forward, forward_fake, forward_flops)
        self.raw_backward = _define(
            f"{name}_backward", backward_schema, backward_record, backward, backward_fake, backward_flops
        )
        torch.library.register_autograd(
            f"vt_fast::{name}", derivative, setup_context=setup_context, lib=LIBRARY
        )
        torch.library.register_autograd(f"vt_fast::{name}_backward", _refusal(name), lib=LIBRARY)
        self._function = _function(name, self.raw, setup_context, derivative)
        self._backward_function = _function(
            f"{name}_backward", self.raw_backward, _keep_nothing, _refusal(name)
        )

    def __call__(self, *args: Any) -> Any:
        """The forward op's results."""
        if torch.compiler.is_compiling() or is_tracing():
            return self.raw(*args)
        if _forward_mode() or (torch.is_grad_enabled() and _requires_grad(args)):
            return self._function.apply(*args)
        return self.raw(*args)

    def call_backward(self, *args: Any) -> Any:
        """The backward op's results, for use in the derivative."""
        # Gradients are enabled here under create_graph=True and in torch.func. Then the results must carry
        # a derivative that raises, in a form that torch.func understands.
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.raw_backward(*args)
        return self._backward_function.apply(*args)


def check_translated(name: str) -> None:
    """Raise where an op is in a program that is exported to ONNX, and no table can have been passed.

    Raises:
        RuntimeError: the message names the table.
    """
    if torch.onnx.is_in_onnx_export() and not onnx_table_exists:
        raise RuntimeError(
            f"the exporter cannot translate vt_fast::{name} of a program that torch.export made: pass "
            "custom_translation_table=vt_fast.onnx.translation_table(), or the model itself"
        )


def nothing(like: Tensor) -> Tensor:
    """A tensor of 0 elements in place of None: ``torch.jit.trace`` rejects optional results."""
    return like.new_empty(0)


def gradients(parts: Sequence[Tensor | None], operands: Sequence[Tensor | None]) -> list[Tensor]:
    """What a backward op returns for small operands: like each of them, 0 elements in place of None."""
    like = next(operand for operand in operands if operand is not None)
    return [
        nothing(like)
        if part is None or operand is None
        else part.to(operand.dtype).reshape(operand.shape).contiguous()
        for part, operand in zip(parts, operands, strict=True)
    ]


def fake_gradients(needs: Sequence[bool], operands: Sequence[Tensor | None]) -> list[Tensor]:
    """:func:`gradients` without data."""
    like = next(operand for operand in operands if operand is not None)
    return [
        operand.new_empty(operand.shape) if needed and operand is not None else nothing(like)
        for needed, operand in zip(needs, operands, strict=True)
    ]


def optional(grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """A backward op's results, None again where nothing was needed."""
    return [grad if needed else None for grad, needed in zip(grads, needs, strict=True)]


def _define(
    name: str,
    schema: str,
    record: Callable[..., R],
    implementation: Callable[[R, Backend], Any],
    fake: Callable[[R], Any],
    flops: Callable[[R], int],
) -> torch._ops.OpOverload[..., Any]:
    """Register an op whose functions take its arguments as a record; the backend's name comes last."""

    def run(*args: Any) -> Any:
        # Autocast is settled before an op is called; inside, it would turn float32 sums into 16 bits.
        device = next(arg for arg in args if isinstance(arg, Tensor)).device.type
        with without_autocast(device):
            return implementation(record(*args[:-1]), load(args[-1]))

    LIBRARY.define(name + schema, tags=_TAGS)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")

    def without_data(*args: Any) -> Any:
        check_translated(name)
        return fake(record(*args[:-1]))

    torch.library.register_fake(f"vt_fast::{name}", without_data, lib=LIBRARY)
    packet = getattr(torch.ops.vt_fast, name)
    # The counter passes the output too, which no formula needs.
    _flop_counter().register_flop_formula(packet, get_raw=True)(
        lambda *args, out_val=None: flops(record(*args[:-1]))
    )
    overload: torch._ops.OpOverload[..., Any] = packet.default
    return overload


def _flop_counter() -> Any:
    """torch.utils.flop_counter, without its warning that Triton is missing."""
    name = "torch.utils.flop_counter"
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module(name)
    finally:
        logger.setLevel(level)


def _function(
    name: str,
    forward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> type[torch.autograd.Function]:
    def run(*args: Any) -> Any:
        return forward(*args)

    # Function.apply reads the signature in each call; computing it there costs more than the call.
    run.__signature__ = inspect.signature(run)  # type: ignore[attr-defined]
    methods = {
        "forward": run,
        "setup_context": setup_context,
        "backward": backward,
        "jvp": _refusal(name, "forward mode"),
    }
    # vmap runs the op once per entry: slow but correct, and enough for per-sample gradients.
    members: dict[str, Any] = {key: staticmethod(method) for key, method in methods.items()}
    return type(f"vt_fast_{name}", (torch.autograd.Function,), members | {"generate_vmap_rule": True})


def _requires_grad(args: tuple[Any, ...]) -> bool:
    for arg in args:  # noqa: SIM110 -- a generator would cost more than the question
        if isinstance(arg, Tensor) and arg.requires_grad:
            return True
    return False


def _forward_mode() -> bool:
    """Whether forward-mode AD is active: the raw op would silently drop the tangents."""
    return bool(forward_ad._current_level >= 0)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _refusal(name: str, what: str = "once only") -> Callable[..., Any]:
    op = name.removesuffix("_backward")
    reason = {
        "once only": "can be differentiated only once: its backward has no derivative",
        "forward mode": "has no forward-mode derivative",
    }[what]

    def derivative(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            f"vt_fast.{op} {reason}. For higher and forward-mode derivatives use "
            f"vt_fast.reference.ops.{op}, the same function in plain PyTorch."
        )

    return derivative

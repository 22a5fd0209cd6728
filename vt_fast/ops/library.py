"""How an op is made known to PyTorch, with its backward: the same way for all of them.

The public op ``vt_fast::<op>`` has a chooser for each kind of device. It picks a backend when the op runs, so
that a saved program runs on any installation. Where a compiled library has kernels for the device it is that
library's, elsewhere :func:`chooser`. A backend's own op, ``vt_fast::<op>_<backend>``, has the same arguments
except ``backend``, and no derivative. ``vt_fast::<op>_next`` is what the library for CUDA calls where its
backend does not take a call.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from vt_fast import backends
from vt_fast.layout import bag_bounds, pixel_count
from vt_fast.ops.counting import register_formula
from vt_fast.precision import autocast, without_autocast
from vt_fast.version import __version__

# The compiled library defines the public ops, if it is there.
_LIBRARY = torch.library.Library("vt_fast", "FRAGMENT" if "cpu" in backends.NATIVE else "DEF")
_OPS = torch.ops.vt_fast

# Operands that autocast casts, x first; see vt_fast.functional.
_IN_ONE_DTYPE = ("x", "keys", "values", "queries", "residual", "extra_values")

_below_autograd = torch._C._AutoDispatchBelowAutograd
_any_requires_grad = torch._C._any_requires_grad
_AFTER_AUTOGRAD = torch._C._after_autograd_keyset
# Looked up once: each call of an op asks them.
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch._C._is_tracing
_transforms_active = torch._C._are_functorch_transforms_active

# Whether the table of :mod:`vt_fast.onnx` has been made, so that an export can use it.
onnx_table_exists = False

Overload: TypeAlias = "torch._ops.OpOverload[..., Any]"


def cache_tag(package: Path = Path(__file__).parents[1]) -> str:
    """What names this version of the ops' derivatives, and of the strides that their fake kernels give.

    In a program without sources, such as one in a single file, that is the version alone.
    """
    digest = hashlib.sha256()
    try:
        modules = (file for file in (package / "ops").iterdir() if file.suffix == ".py")
        for file in [*sorted(modules), package / "layout.py"]:
            digest.update(file.read_bytes())
    except OSError:
        return f"vt_fast-{__version__}"
    return f"vt_fast-{__version__}-{digest.hexdigest()[:16]}"


# torch.compile keeps graphs on disk under keys with the names of ops, not with their derivatives. After an
# update of this package it would run the backward of the version before.
torch.compiler.config.cache_key_tag += cache_tag()


class Pass(NamedTuple):
    """The forward or the backward of an op.

    ``arguments`` are the fields of ``record`` as the schema has them. ``family`` are those that follow with
    defaults: of the op family, but refused. ``check`` raises for arguments that do not fit, ``run`` calls
    a backend's function, ``fake`` does so without data.
    """

    name: str
    record: Any
    arguments: str
    results: str
    run: Callable[[Any, Any], Any]
    fake: Callable[[Any], Any]
    flops: Callable[[Any], int]
    check: Callable[[Any], None]
    family: str = ""

    def schema(self, backend: str | None = None) -> str:
        """Of the public op, or of a backend's own."""
        arguments = f"{self.arguments}, {self.family}" if self.family else self.arguments
        if backend is None:
            return f"{self.name}({arguments}, *, str? backend=None) -> ({self.results})"
        return f"{self.name}_{backend}({arguments}) -> ({self.results})"

    def call(self, args: Sequence[Any]) -> Any:
        """The record. Of what has a default, PyTorch leaves out the last ones.

        Raises:
            ValueError: an argument that this op refuses.
        """
        count = len(self.record._fields)
        for argument, value in zip(self.op()._schema.arguments[count:], args[count:], strict=False):
            if value is not argument.default_value and value != argument.default_value:
                raise ValueError(f"`{argument.name}` is not supported by {self.name}")
        return self.record(*args[:count])

    def op(self, backend: str | None = None) -> Overload:
        """The public op, or a backend's own."""
        name = self.name if backend is None else f"{self.name}_{backend}"
        overload: Overload = getattr(_OPS, name).default
        return overload


class DifferentiableOp:
    """An op together with its backward."""

    def __init__(
        self,
        forward: Pass,
        backward: Pass,
        *,
        save: Callable[[Any, Any, Any], None],
        derivative: Callable[..., tuple[Any, ...]],
    ) -> None:
        self.name = forward.name
        self.passes = (forward, backward)
        self.save, self.derivative = save, derivative
        for each in self.passes:
            _define(each)
        self.raw, self.raw_backward = forward.op(), backward.op()
        # Called directly, a backend in Python raises what it raises. The chooser in C++ would turn it into a
        # RuntimeError, be it a KeyboardInterrupt.
        self._own = {name: forward.op(name) for name in _in_python()}
        self._own_backward = {name: backward.op(name) for name in _in_python()}
        self._apply = _differentiate(forward, save, derivative, self._own)
        for device in ("cpu", "cuda"):
            _LIBRARY.impl(self.name, _casting(forward, device), f"Autocast{device.upper()}", with_keyset=True)
        _differentiate(backward, lambda ctx, call, results: None, _refusal(self.name), self._own_backward)

    def __call__(
        self, call: tuple[Any, ...], backend: str | None, *, plain: bool, differentiable: bool
    ) -> Any:
        """The results. ``plain``: as :func:`plain_eager` says; ``differentiable``: gradients are wanted."""
        if not plain:
            return _called(self.raw, call, backend)
        if differentiable:
            return self._apply(*call, backend, None)
        with _below_autograd():
            return _called(self.raw, call, backend, self._own)

    def check(self, call: tuple[Any, ...], backend: str | None) -> None:
        """Raise where an argument does not fit, or the named backend cannot do the call."""
        forward = self.passes[0]
        record = forward.record(*call)
        forward.check(record)
        if backend is not None:
            backends.choose(backend, record)

    def explain(self, error: Exception, call: tuple[Any, ...], backend: str | None) -> None:
        """Raise in place of the op's own error, where another type or message tells more."""
        _raise_out_of_memory(error)
        try:
            self.check(call, backend)
            record = self.passes[0].record(*call)
            offsets = getattr(record, "offsets", None)
            if offsets is not None and offsets.device.type == "cpu" and plain_eager():
                bag_bounds(offsets, pixel_count(record.x))
        except (TypeError, ValueError, RuntimeError) as clearer:
            raise clearer from None

    def call_backward(self, call: tuple[Any, ...], backend: str | None) -> Any:
        """The backward op's results, for use in the derivative."""
        # Gradients are enabled under create_graph=True: the results must carry a derivative that raises.
        try:
            if torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch.compiler.is_compiling():
                return _called(self.raw_backward, call, backend)
            with _below_autograd():
                return _called(self.raw_backward, call, backend, self._own_backward)
        except RuntimeError as error:
            _raise_out_of_memory(error)
            raise


def _in_python() -> list[str]:
    return [name for name in backends.NAMES if name not in backends.NATIVE]


def _called(
    public: Overload, args: Sequence[Any], backend: str | None, own: Mapping[str, Overload] | None = None
) -> Any:
    """Call a public op, or the backend's own op if ``own`` has it."""
    if backend is None:
        return public(*args)
    if own is not None and backend in own:
        return own[backend](*args)
    return public(*args, backend=backend)


def _raise_out_of_memory(error: Exception) -> None:
    """Raise torch.OutOfMemoryError where an op in C++ says so, whose errors are RuntimeErrors.

    Before 2.13, torch prints the reason and keeps it from the op; then the RuntimeError stays.
    """
    if type(error) is RuntimeError and "CUDA out of memory" in str(error):
        raise torch.OutOfMemoryError(str(error)) from None


def plain_eager() -> bool:
    """Whether no compiler, no tracer, no function transform and no forward-mode AD is active.

    Then a call can go past the op's autograd kernel, which costs more than calling autograd directly.
    """
    return not (_is_compiling() or _is_tracing() or _transforms_active() or forward_ad._current_level >= 0)


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


def check_needs(count: int) -> Callable[[Any], None]:
    """The check of a backward of so many gradients; its other arguments were a forward's."""

    def check(call: Any) -> None:
        if len(call.needs) != count:
            raise ValueError(f"`needs` must have {count} entries, got {len(call.needs)}")

    return check


def gradients(parts: Sequence[Tensor | None], operands: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What a backward op returns for small operands: like each of them, None where nothing is needed."""
    return [
        None
        if part is None or operand is None
        else part.to(operand.dtype).reshape(operand.shape).contiguous()
        for part, operand in zip(parts, operands, strict=True)
    ]


def fake_gradients(needs: Sequence[bool], operands: Sequence[Tensor | None]) -> list[Tensor | None]:
    """:func:`gradients` without data."""
    return [
        operand.new_empty(operand.shape) if needed and operand is not None else None
        for needed, operand in zip(needs, operands, strict=True)
    ]


def _define(op: Pass) -> None:
    """Register the public op and the backends' own ones: schemas, kernels in Python, fakes, FLOPs."""
    if "cpu" not in backends.NATIVE:
        for backend in (None, *backends.NAMES, "next"):
            _LIBRARY.define(op.schema(backend))
    # The op of a library is called on its own devices, and that in Python elsewhere, to say so.
    for backend in [name for name in backends.NAMES if name != "cpu" or name not in backends.NATIVE]:
        _LIBRARY.impl(f"{op.name}_{backend}", chooser(op, backend), "CompositeExplicitAutograd")
    _LIBRARY.impl(f"{op.name}_next", chooser(op, after="cuda"), "CompositeExplicitAutograd")
    _LIBRARY.impl(op.name, chooser(op), "CompositeExplicitAutograd")

    def fake(*args: Any, backend: str | None = None) -> Any:
        check_translated(op.name)
        call = op.call(args)
        op.check(call)
        return op.fake(call)

    def flops(*args: Any, out_val: Any = None, backend: str | None = None) -> int:
        return op.flops(op.call(args))

    for backend in (None, *backends.NAMES):
        try:
            name = op.op(backend)._schema.name
        except AttributeError as error:
            raise ImportError(
                f"the compiled library is of another version: {error}; run `make native`"
            ) from None
        torch.library.register_fake(name, fake, lib=_LIBRARY)
        register_formula(op.op(backend).overloadpacket, flops)
        if backend is not None:
            _LIBRARY.impl(
                f"{op.name}_{backend}", _undifferentiable(op, backend), "Autograd", with_keyset=True
            )


def _casting(op: Pass, device: str) -> Callable[..., Any]:
    """What the public op does under autocast in saved programs; `functional` has cast its operands before."""
    raw, fields = op.op(), op.record._fields
    shared = [fields.index(name) for name in _IN_ONE_DTYPE if name in fields]
    autocast_key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def kernel(keyset: Any, *args: Any, backend: str | None = None) -> Any:
        given = list(args)
        present = [index for index in shared if index < len(given)]  # defaults at the end are left out
        for index, value in zip(present, autocast(*(given[index] for index in present)), strict=True):
            given[index] = value
        with torch._C._ExcludeDispatchKeyGuard(autocast_key):
            return _called(raw, given, backend)

    return kernel


def _undifferentiable(op: Pass, backend: str) -> Callable[..., Any]:
    own = op.op(backend)

    def kernel(keyset: Any, *args: Any) -> Any:
        if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and _any_requires_grad(*args)):
            raise RuntimeError(
                f"vt_fast::{op.name}_{backend} has no derivative: call vt_fast::{op.name} with "
                f'backend="{backend}"'
            )
        return own.redispatch(keyset & _AFTER_AUTOGRAD, *args)

    return kernel


def chooser(op: Pass, only: str | None = None, *, after: str | None = None) -> Callable[..., Any]:
    """What the public op does where no compiled library has a chooser.

    ``only``: what the own op of this backend does. ``after``: choose among the backends that come after it.
    """
    own = {
        backend: op.op(backend) if backend in backends.NATIVE else functools.partial(_run, op, backend)
        for backend in backends.NAMES
    }

    def choose(*args: Any, backend: str | None = only) -> Any:
        call = op.call(args)
        op.check(call)
        while True:
            name = backends.choose(backend, call, after=after)
            try:
                return own[name](*call)
            except backends.CannotRunError as error:
                if backend is not None:
                    raise
                backends.give_up(name, call, error)

    return choose


def _run(op: Pass, backend: str, *args: Any) -> Any:
    call = op.record(*args)
    # Autocast is settled before an op is called; inside, it would turn float32 sums into 16 bits.
    device = next(value for value in call if isinstance(value, Tensor)).device.type
    with without_autocast(device):
        return op.run(call, backends.load(backend))


def _differentiate(
    op: Pass,
    save: Callable[[Any, Any, Any], None],
    derivative: Callable[..., tuple[Any, ...]],
    own: Mapping[str, Overload],
) -> Callable[..., Any]:
    """Make an op differentiable. Returns what eager mode calls: it takes the op's arguments, backend, None.

    Both use the C++ part of ``Function.apply`` alone. Its Python part costs more than the rest of a call, and
    refuses function transforms in an autograd kernel, where they have already been dealt with.
    """
    raw = op.op()

    def redispatched(keyset: Any, args: Sequence[Any], backend: str | None) -> Any:
        given = {} if backend is None else {"backend": backend}
        return raw.redispatch(keyset & _AFTER_AUTOGRAD, *args, **given)

    def forward(ctx: Any, *args: Any) -> Any:
        args, backend, keyset = args[:-2], *args[-2:]
        if keyset is None:
            with _below_autograd():
                results = _called(raw, args, backend, own)
        else:
            # A transform's outer levels are differentiated inside; Function.apply has turned that off.
            with torch.enable_grad(), _below_autograd():
                results = redispatched(keyset, args, backend)
        ctx.backend = backend
        save(ctx, args, results)
        return results

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        found = derivative(ctx, needs, *grads)
        return found if len(found) == len(needs) else (*found, *[None] * (len(needs) - len(found)))

    members = {"forward": forward, "backward": backward, "jvp": _refusal(op.name, "forward mode")}
    function = type(
        f"vt_fast_{op.name}",
        (torch.autograd.Function,),
        {key: staticmethod(value) for key, value in members.items()},
    )
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def kernel(keyset: Any, *args: Any, backend: str | None = None) -> Any:
        if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and _any_requires_grad(*args)):
            with enable_single_level_autograd_function():
                return apply(*args, backend, keyset)
        with _below_autograd():
            return redispatched(keyset, args, backend)

    _LIBRARY.impl(op.name, kernel, "Autograd", with_keyset=True)
    return apply


def _refusal(name: str, what: str = "once only") -> Callable[..., Any]:
    op = name.removesuffix("_backward")
    reason = {
        "once only": "can be differentiated only once: its backward has no derivative",
        "forward mode": "has no forward-mode derivative",
    }[what]

    def derivative(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"vt_fast.{op} {reason}. For higher and forward-mode derivatives use "
            f"vt_fast.reference.ops.{op}, the same function in plain PyTorch."
        )

    return derivative

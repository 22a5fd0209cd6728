"""Operands that are folded from parameters alone, kept between calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook

from vt_fast.nn.traced import interposed
from vt_fast.precision import autocast_enabled

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module) -> Module:
    """Keep the operands that modules inside `module` fold from their parameters alone, and return `module`.

    They are used in eval mode under `torch.no_grad()` or `torch.inference_mode()`, and only while the
    parameters are the same: a new parameter, another dtype or device, and every write that autograd counts
    (`copy_`, an optimizer's step) make the next call fold again. `load_state_dict`, `train()`, and what goes
    through `_apply` (`to`, `half`, `cuda`) drop them. `torch.compile`, `torch.export`, tracing,
    `torch.func` and CUDA graphs ignore them, and so do processes of a `torch.distributed` group, where
    sharding rewrites parameters uncounted. Copies and pickles do not contain them.

    A projector with one head keeps the product of its query and key weights where that is less work: results
    then differ by rounding. On x86 processors, weights in float32 that oneDNN multiplies tokens with (large
    products without groups) are kept in its order too, which takes their memory once more.

    Writes through `.data`, a storage, or memory shared with NumPy or another process leave no trace, nor do
    writes to what `torch.nn.utils.vector_to_parameters` was given: call :func:`unfreeze` before them.

    Args:
        module: any module, for example a whole network. It may have been patched by :func:`vt_fast.patch`.

    Raises:
        TypeError: `module` is no module.
        ValueError: no module inside can keep operands.

    Example:
        >>> import torch, vt_fast
        >>> net = freeze(vt_fast.nn.FilterTokenizer(8, 4).eval())
        >>> with torch.no_grad():
        ...     net(torch.randn(2, 8, 6, 6)).shape
        torch.Size([2, 4, 8])
    """
    _check(module)
    parts = [part for part in module.modules() if isinstance(part, Freezable)]
    if not parts:
        raise ValueError(
            "`module` must contain a module of `vt_fast.nn` or one that `vt_fast.patch` has replaced, got "
            f"{type(module).__name__} without any"
        )
    _Steps.watch()
    for part in parts:
        part.__dict__.setdefault("_kept", Kept())
    return module


def unfreeze(module: Module) -> Module:
    """Undo :func:`freeze`: drop all kept operands, and keep no more. Returns `module`."""
    _check(module)
    for part in module.modules():
        part.__dict__.pop("_kept", None)
    return module


def _check(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")


class Entry(NamedTuple):
    """An operand and what it was made from."""

    key: Hashable
    sources: tuple[Tensor | None, ...]
    value: Any


class Kept:
    """The operands of one module. A copy or a pickle is empty."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


class Freezable:
    """Mixin, before `nn.Module`, of modules that keep operands; see :func:`freeze` and :func:`kept`."""

    def train(self, mode: bool = True) -> Any:
        """Set the mode; other than eval() in eval mode, it drops kept operands."""
        if mode or self.training:  # type: ignore[attr-defined]
            _drop(self)
        return super().train(mode)  # type: ignore[misc]

    def _apply(self, *args: Any, **options: Any) -> Any:
        _drop(self)
        return super()._apply(*args, **options)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        _drop(self)
        super()._load_from_state_dict(*args, **options)  # type: ignore[misc]


Value = TypeVar("Value")


def kept(
    module: nn.Module,
    name: str,
    sources: Sequence[Tensor | None],
    fold: Callable[[], Value],
    *options: Hashable,
    otherwise: Callable[[], Value] | None = None,
) -> Value:
    """What `fold()` returns, kept under `name` where `module` is frozen.

    Args:
        module: a :class:`Freezable` one.
        name: of the operand.
        sources: all tensors that `fold` reads.
        fold: makes the operand.
        *options: all else that the operand depends on. Only the last ones are kept.
        otherwise: makes what is used where nothing is kept; by default `fold`.
    """
    otherwise = otherwise or fold
    if torch.compiler.is_compiling():
        return otherwise()
    store = module.__dict__.get("_kept")
    if store is None or module.training or torch.is_grad_enabled() or _uncertain():
        return otherwise()
    key = _key(sources, options)
    if key is None:
        return otherwise()
    entry = store.entries.get(name)  # read once: another thread may replace it
    if entry is None or entry.key != key:
        # Aliases of the sources, so that no other tensor can come to lie at their addresses.
        held = tuple(None if source is None else source.detach() for source in sources)
        entry = store.entries[name] = Entry(key, held, fold())
    return cast(Value, entry.value)


class _Steps:
    """Counts steps of optimizers with `fused=True`, which write parameters on CPUs uncounted by autograd."""

    count = 0
    hook: Any = None

    @classmethod
    def watch(cls) -> None:
        """Count from now on."""
        if cls.hook is None:
            cls.hook = register_optimizer_step_post_hook(cls.add)

    @classmethod
    def add(cls, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """A step was made. Only fused ones count: autograd counts what the others write."""
        cls.count += any(group.get("fused") for group in optimizer.param_groups)


def _key(sources: Sequence[Tensor | None], options: tuple[Hashable, ...]) -> Hashable | None:
    """Equal for equal operands; None where that cannot be told."""
    parts: list[Hashable] = [*options, _Steps.count]
    for source in sources:
        if source is None:
            parts.append(None)
            continue
        # An inference tensor does not count its writes, and a wrapper has no address.
        if type(source) not in (Tensor, nn.Parameter) or source.is_inference():
            return None
        device = source.device.type
        cast = torch.get_autocast_dtype(device) if autocast_enabled(device) else None
        address = (source.data_ptr(), source._version, source.shape, source.stride())
        # Another stream does not wait for the one that folds.
        stream = torch.cuda.current_stream(source.device).cuda_stream if source.is_cuda else None
        parts += (*address, source.dtype, source.device, cast, stream)
    return tuple(parts)


def _uncertain() -> bool:
    """Whether tensors may stand for others, as in traces and transforms, or be written uncounted."""
    return (
        interposed()
        # A replay neither folds again what was kept, nor has it folded yet what it is to keep.
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
        # FSDP gathers parameters into the same memory, and preserves their versions.
        or (dist.is_available() and dist.is_initialized())
    )


def _drop(module: Any) -> None:
    store = module.__dict__.get("_kept")
    if store is not None:
        store.entries = {}

"""How a rewrite is described, and how it takes the place of a host's computation.

A replaced module gets a subclass of its class, made here, whose `forward` is the rewrite. The object, its
`__dict__`, hooks, parameters and names stay as they are, and `isinstance` still holds. To undo it is to give
the old class back. `torch.compile`, `torch.export`, `copy` and `DataParallel` see an ordinary module. Pickles
name the host's class and make the subclass again.
"""

from __future__ import annotations

import copyreg
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vt_fast.nn.frozen import Freezable
from vt_fast.nn.members import why_all_hooked

#: The rewrite of each known class, by the name of its module and its own.
KNOWN: dict[str, type[Patch]] = {}


class Patch:
    """One rewrite. Subclasses are not instantiated; each describes the rewrite of one class of modules.

    Attributes:
        hosts: full names of the classes, which have the same code.
        members: the names of all children, parameters and buffers that the classes have. A host with another
            one is a version that this rewrite was not written for.
        note: which calls run the host's own forward, for the report.
        attribute: only modules that their parent calls so are known.
    """

    hosts: ClassVar[tuple[str, ...]] = ()
    members: ClassVar[str] = ""
    note: ClassVar[str] = ""
    attribute: ClassVar[str | None] = None

    #: The host's forward, with the same arguments. It calls `own_forward` where it does not apply.
    forward: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        KNOWN.update(dict.fromkeys(cls.hosts, cls))

    @staticmethod
    def concerns(module: Any) -> bool:
        """Whether this is the kind of module that is rewritten; others of its class are not reported."""
        return True

    @staticmethod
    def why_not(module: Any) -> str | None:
        """Why a module cannot be rewritten as it is now, or None; asked by `patch` and by each call."""
        return None


class Patched(Freezable):
    """Mixin of all replaced modules."""

    _vt_fast_patch: ClassVar[type[Patch]]
    _vt_fast_host: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        made, args, *state = reduced
        known = made is copyreg.__newobj__  # type: ignore[attr-defined]
        if not known or args[0] is not patched_class(self._vt_fast_host):
            return reduced
        return (_restored, (self._vt_fast_host, *args[1:]), *state)


def _restored(host: type[nn.Module], *args: Any) -> nn.Module:
    cls = patched_class(host)
    module: nn.Module = cls.__new__(cls, *args)
    return module


def patched_class(host: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a host's class that runs the rewrite, the same one in each call."""
    made = _MADE.get(host)
    if made is None:
        made = _MADE.setdefault(host, _make(host))
    return made


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def _make(host: type[nn.Module]) -> type[nn.Module]:
    patch = patch_of(host)
    if patch is None:
        raise TypeError(f"`host` must be a class that `vt_fast.patch` knows, got {host.__name__}")
    names = {
        "forward": patch.forward,
        "_vt_fast_patch": patch,
        "_vt_fast_host": host,
        # Some tools tell classes by their names.
        "__module__": host.__module__,
        "__qualname__": host.__qualname__,
        "__doc__": host.__doc__,
    }
    return type(host.__name__, (Patched, host), names)


def full_name(cls: type) -> str:
    """The name of a class with that of its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def patch_of(cls: type) -> type[Patch] | None:
    """The rewrite of a class or of the class that it derives from."""
    from vt_fast.patches import hosts

    hosts.load()
    return next((KNOWN[full_name(base)] for base in cls.__mro__ if full_name(base) in KNOWN), None)


def why_not(module: nn.Module, patch: type[Patch]) -> str | None:
    """Why a module must not be replaced; None where it may be."""
    cls: Any = type(module)
    for base in cls.__mro__:
        if full_name(base) in patch.hosts:
            host = base
            break
        if base.__module__.startswith("torch."):
            return f"torch has made it a {base.__name__}; patch it before that"
    changed = [base for base in cls.__mro__[: cls.__mro__.index(host)] if _overrides(base, host)]
    if changed:
        names = ", ".join(sorted(_overrides(changed[0], host)))
        return f"is a {changed[0].__name__}, which overrides {names}"
    if _has_other_forward(host):
        return "its class's forward was replaced"
    if "forward" in module.__dict__:
        return "it has a forward of its own, as accelerate's hooks and other patches give it"
    if _arguments(host.forward) != _arguments(patch.forward):
        taken = ", ".join(_arguments(host.forward))
        return f"its forward takes ({taken}), unlike the version that this patch was written for"
    members = {*module._modules, *module._parameters, *module._buffers}
    unknown = members - set(patch.members.split())
    if unknown:
        return f"it has {', '.join(sorted(unknown))}, unlike the version that this patch was written for"
    try:
        return patch.why_not(module)
    except AttributeError as error:
        return f"unlike in the version that this patch was written for, {error}"


def _overrides(cls: type, host: type) -> set[str]:
    common = {
        "__init__",
        "__module__",
        "__doc__",
        "__annotations__",
        "__abstractmethods__",
        "_abc_impl",
        "__annotate_func__",
        "__annotations_cache__",
        "__firstlineno__",
        "__static_attributes__",
    }
    own = {name for name in vars(cls) if name not in common}
    return own & ({name for base in host.__mro__ for name in vars(base)} - {"extra_repr", "__repr__"})


def _has_other_forward(cls: Any) -> bool:
    """Whether the forward of a class was replaced in the class, as some libraries do."""
    owner = next(base for base in cls.__mro__ if "forward" in vars(base))
    own = (owner.__module__, f"{owner.__qualname__}.forward")
    return (cls.forward.__module__, cls.forward.__qualname__) != own


def _arguments(forward: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(forward).parameters)[1:]


def own_forward(module: Any, *args: Any, **options: Any) -> Any:
    """What the host's class computes."""
    return module._vt_fast_host.forward(module, *args, **options)


def why_not_plain(
    module: Any, kind: type[nn.Module] | tuple[type[nn.Module], ...], *names: str
) -> str | None:
    """Why the parameters of some members must not be used without calling them; None where they may be.

    Adapters (LoRA), quantised layers, parametrisations, pruning, sharding and hooks change what a call does.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    for name in names:
        member = module._modules.get(name)
        if type(member) not in kinds:
            return f"{name} is a {type(member).__name__}"
        if has_hooks(member):
            return f"{name} has hooks or another forward, and the rewrite does not call it"
        for parameter in member._parameters.values():
            if parameter is not None and not _is_plain(parameter):
                return f"{name} has a {type(parameter).__name__}"
    return None


def why_weights_are_returned(config: Any) -> str | None:
    """Of transformers: why an attention must write its weights; None where it returns None in their place."""
    implementation = str(config._attn_implementation)
    if implementation == "sdpa" or implementation.startswith("flash_attention"):
        return None
    return f"it returns attention weights: config._attn_implementation is {implementation!r}"


def has_hooks(module: Any) -> bool:
    """Whether calls of a module do anything but its library's forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        # A compiler cannot trace these questions.
        or (
            not torch.compiler.is_compiling()
            and (_has_other_forward(type(module)) or why_all_hooked() is not None)
        )
    )


def acts(dropout: Any, *, training: bool = False) -> bool:
    """Whether a dropout, which the rewrite does not call, changes what it is given.

    Anything else in its place may. ``training``: of the host, where that is what decides.
    """
    if type(dropout) is nn.Dropout and not has_hooks(dropout):
        return bool(dropout.p > 0 and (training or dropout.training))
    return type(dropout) is not nn.Identity


def _is_plain(parameter: Tensor) -> bool:
    # torch.export and FakeTensorMode put fake tensors in place of parameters.
    kind = type(parameter)
    return kind is nn.Parameter or kind is Tensor or kind is FakeTensor

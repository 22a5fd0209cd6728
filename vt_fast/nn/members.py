"""Which members of a fused module may be called for a part of a pass, and which run on their own."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks_of_all
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)


def why_not_fused(member: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why a member must be called as any module would be; None where it may be called for a part of a pass.

    Then its call goes through the wrapper and the hooks of PyTorch's that it has, such as those of FSDP,
    pruning and spectral norm. Other hooks and classes are not known to allow other arguments and results.
    """
    key = (type(member), type(member).forward, kind)  # a forward may be replaced in the class
    compiling = torch.compiler.is_compiling()  # then it would guard on what the set has
    if not compiling and key in _KNOWN_KINDS and is_bare(member):
        return None
    reason = _why_not_fused(member, kind)
    if reason is None and not compiling and type(member).__module__.startswith("vt_fast.nn."):
        _KNOWN_KINDS.add(key)
    return reason


def is_bare(member: nn.Module) -> bool:
    """Whether a call of a member runs the forward of its class alone: there are no hooks of anyone's."""
    return not (
        member._forward_pre_hooks
        or member._forward_hooks
        or member._backward_pre_hooks
        or member._backward_hooks
        or "forward" in member.__dict__
        or _global_forward_pre_hooks
        or _global_forward_hooks
        or _global_backward_pre_hooks
        or _global_backward_hooks
    )


# Classes of members that have been asked about, which saves most of a small stack's time for the questions.
_KNOWN_KINDS: set[tuple[type[nn.Module], Any, type[nn.Module]]] = set()


def _why_not_fused(member: nn.Module, kind: type[nn.Module]) -> str | None:
    while True:
        reason = _why_hooked(member)
        if reason is not None:
            return reason
        inside = _inside(member)
        if inside is None:
            break
        # It calls the module again in the backward, and sees no tensors inside of other arguments.
        if getattr(getattr(member, "checkpoint_impl", None), "name", "") == "REENTRANT":
            return "is checkpointed with reentrant autograd"
        member = inside
    if not isinstance(member, kind):
        return f"is a {type(member).__name__}"
    forward = type(member).forward
    if not forward.__module__.startswith("vt_fast.nn.") or hasattr(forward, "__wrapped__"):
        return f"is a {type(member).__name__} with a forward of its own"
    if "forward" in member.__dict__ and not hasattr(member, "_hf_hook"):
        return "has a forward of its own"
    return None


# What PyTorch's wrappers (checkpointing and offloading, FSDP, torch.compile) call the module that they wrap.
_WRAPPED = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# Hooks that take any arguments: they make parameters or gather them, note the names of modules, or count.
_KNOWN_HOOKS = (
    *("torch.distributed.", "torch.nn.utils.", "torch.utils."),
    *("fvcore.", "ptflops.aten_engine", "thop.", "vt_fast.flops"),
)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of PyTorch's wrappers. Call the wrapper, not this."""
    inside = _inside(module)
    return module if inside is None else unwrapped(inside)


def _inside(module: nn.Module) -> nn.Module | None:
    if not type(module).__module__.startswith("torch."):
        return None
    name = next((name for name in _WRAPPED if name in module._modules), None)
    return None if name is None else module._modules[name]


def _why_hooked(member: nn.Module) -> str | None:
    return _unknown_hook(member, "") or why_all_hooked()


def why_all_hooked() -> str | None:
    """The hook that a user has registered for all modules, in words; None where there is none."""
    return _unknown_hook(hooks_of_all, "_global")


def _unknown_hook(owner: Any, prefix: str) -> str | None:
    for kind in _HOOKS:
        for hook in getattr(owner, prefix + kind).values():
            while isinstance(hook, functools.partial):
                hook = hook.func
            if not _made_by(hook, _KNOWN_HOOKS):
                return f"has the hook {getattr(hook, '__qualname__', type(hook).__qualname__)}"
    return None


def _made_by(hook: Any, packages: str | tuple[str, ...]) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith(packages)


def spans_processes(module: nn.Module) -> bool:
    """Whether PyTorch shares out this module, or its gradients, among processes."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    # `fully_shard`, `replicate` and `parallelize_module` leave the class or derive from it.
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return bool(kinds & {"DistributedDataParallel", "FullyShardedDataParallel"}) or any(
        _made_by(hook, "torch.distributed.") for hook in hooks
    )


def refuse_opacus(module: nn.Module, argument: str, why: str) -> None:
    """Raise where Opacus hooks a module whose gradients for each sample it would get wrong.

    Raises:
        ValueError: it does.
    """
    if any(_made_by(hook, "opacus.") for hook in module._forward_hooks.values()):
        raise ValueError(
            f"`{argument}` must be None under Opacus, {why}; use torch.func.vmap of torch.func.grad"
        )

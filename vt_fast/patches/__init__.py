"""Make a loaded model of a known library faster in place: `vt_fast.patch(model)`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vt_fast.patches import base
from vt_fast.patches.base import Patched
from vt_fast.patches.report import Report, Row

__all__ = ["Report", "Row", "patch", "unpatch"]


def patch(model: nn.Module, *, only: str | Iterable[str] | None = None, dry_run: bool = False) -> Report:
    """Replace the computation of known attention modules by the ops, in place; see `docs/patches.md`.

    Results and gradients are those of the model up to rounding. State dict, names, parameters, buffers,
    hooks, train and eval mode, copies, pickles, `torch.compile` and `torch.export` stay as they are. A call
    that a rewrite does not cover (dropout in training, attention weights wanted, other masks, an adapter put
    in later) runs the module's own forward. A module that can never be rewritten is left alone, with the
    reason in the report.

    Patch before `torch.compile`, `fully_shard` and parametrisations. Operands are folded from the weights in
    each call: see :func:`vt_fast.nn.freeze` for inference. Patching twice changes nothing.

    Args:
        model: modified in place.
        only: names of submodules: those and what is inside are considered, and nothing else. Where nothing
            in them is known, the report has the known modules around them.
        dry_run: change nothing, report alone.

    Returns:
        What was replaced, what was not and why. Printed, it is a table.

    Raises:
        TypeError: `model` is no module, or `only` holds no names.
        ValueError: there is no submodule of a name in `only`.

    Example:
        >>> import torch, vt_fast
        >>> report = vt_fast.patch(torch.nn.Linear(8, 8))
        >>> print(report)
        No module of the model is known to `vt_fast.patch`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    prefixes = _prefixes(model, only)
    found: list[
        tuple[Row, Any, str]
    ] = []  # and the module, and what `only` names inside, where it names a part
    seen = set()
    for path, module in model.named_modules(remove_duplicate=False):
        here = _prefix(path)
        chosen = prefixes is None or any(here.startswith(prefix) for prefix in prefixes)
        part = "" if chosen else next((each for each in prefixes or () if each.startswith(here)), "")
        rewrite = base.patch_of(type(module)) if chosen or part else None
        if rewrite is None or not rewrite.concerns(module):
            continue
        if rewrite.attribute not in (None, path.rpartition(".")[2]) or module in seen:
            continue
        if not part:
            seen.add(module)  # a module may have several names, of which `only` may be any
        if isinstance(module, Patched):
            row = Row(path, base.full_name(module._vt_fast_host), True, "was replaced before")
            found.append((row, module, part))
            continue
        name, reason = base.full_name(type(module)), base.why_not(module, rewrite)
        if part and reason is None:
            reason = f"it can only be replaced as a whole, and `only` names just a part of it: {part[:-1]}"
        if reason is None and not dry_run:
            module.__class__ = base.patched_class(type(module))
        row = Row(path, name, reason is None, rewrite.note if reason is None else reason)
        found.append((row, module, part))
    # What has a named part is of interest where nothing else was recognised.
    inside = [_prefix(row.path) for row, _, part in found if not part]
    rows = [
        row
        for row, module, part in found
        if not part or (module not in seen and not any(each.startswith(part) for each in inside))
    ]
    return Report(tuple(rows), dry_run)


def unpatch(model: nn.Module) -> None:
    """Give every module that :func:`patch` replaced its own computation back. The same bits as before.

    Raises:
        TypeError: `model` is no module.
        ValueError: a tool, such as `fully_shard` or accelerate, has changed the class or the forward of a
            replaced module since. Nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    replaced: list[tuple[str, Any]]
    replaced = [(path, module) for path, module in model.named_modules() if isinstance(module, Patched)]
    for path, module in replaced:
        if type(module) is not base.patched_class(module._vt_fast_host):
            raise ValueError(
                f"`model` must have the classes that `patch` gave it, got a {type(module).__name__} of "
                f"{type(module).__module__} at {path!r}"
            )
        if "forward" in module.__dict__:
            raise ValueError(
                f"`model` must have the forwards that `patch` gave it, got {module.forward!r} at {path!r}"
            )
    for _, module in replaced:
        module.__dict__.pop("_kept", None)
        module.__class__ = module._vt_fast_host


def _prefixes(model: nn.Module, only: str | Iterable[str] | None) -> list[str] | None:
    if only is None:
        return None
    names = [only] if isinstance(only, str) else list(only) if isinstance(only, Iterable) else [only]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`only` must be None, or one or several names of submodules, got {only!r:.80}")
    for name in names:
        try:
            model.get_submodule(name)
        except AttributeError:
            known = ", ".join(child for child, _ in model.named_children())
            raise ValueError(f"`only` must name submodules ({known}, ..), got {name!r}") from None
    return [_prefix(name) for name in names]


def _prefix(path: str) -> str:
    """What the names of a module's own members begin with."""
    return path and f"{path}."

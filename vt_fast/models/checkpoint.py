"""Load the parameters of a trained ResNet into the backbone of a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vt_fast.models.resnet import ResNet

# Entries of a training checkpoint that hold the model, the preferred ones first.
SECTIONS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Prefixes that wrappers add to every name, and the prefix of a network's backbone.
WRAPPERS = ("module.", "_orig_mod.")
BACKBONE = "backbone."
# BatchNorm's batch counter has no effect with a momentum, and old checkpoints lack it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """The result of :func:`load_backbone`, by names without the checkpoint's prefixes.

    Args:
        taken: parameters and buffers of the backbone that were set.
        left: in the checkpoint but not in the backbone: the replaced stage, and usually the classifier.
        missing: in the backbone but not in the checkpoint; unchanged. BatchNorm's batch counters are not
            listed.
        mismatched: in both, with (the checkpoint's shape, the backbone's shape); unchanged.
        section: the checkpoint's entry that was read, such as "state_dict"; None for a plain state dict.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    section: str | None = None

    @property
    def complete(self) -> bool:
        """Whether everything in the backbone was set."""
        return not self.missing and not self.mismatched

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} taken, {len(self.left)} left in the checkpoint"]
        if self.missing:
            lines.append(f"missing in the checkpoint: {_some(self.missing)}")
        lines += [
            f"{name}: {given} in the checkpoint, {wanted} in the backbone"
            for name, (given, wanted) in self.mismatched.items()
        ]
        return "\n".join(lines)


def load_backbone(model: nn.Module, checkpoint: Mapping[str, Any] | str | os.PathLike[str]) -> LoadReport:
    """Load the parameters of a ResNet of torchvision, timm or this package into the backbone of a model.

    Parameters are matched by name and shape. If the checkpoint has several entries, "state_dict_ema" or
    "model_ema" is read, otherwise "state_dict" or "model". The prefixes "module.", "_orig_mod." and
    "backbone." are removed. Files are read with `weights_only=True`, so no code in them runs.

    Args:
        model: a network with a `backbone`, such as a VTResNet, or a :class:`ResNet`, whose classifier is
            loaded too if its shape is the checkpoint's.
        checkpoint: a state dict, a dict of a training script that contains one, or the path of a file:
            .safetensors (needs safetensors), or a file of `torch.save`.

    Returns:
        What was loaded and what was not: check `complete`, or print it.

    Raises:
        TypeError: a model without a backbone, or a checkpoint that is neither a mapping nor a path.
        ValueError: nothing in the checkpoint fits; the message says why. The model is then unchanged.
        ModuleNotFoundError: a .safetensors file, and safetensors is not installed.

    Example:
        >>> from vt_fast.models import VTResNet
        >>> report = load_backbone(VTResNet(18), ResNet(18, num_classes=1000).state_dict())
        >>> report.complete, report.left[-1]
        (True, 'fc.bias')
    """
    backbone = model if isinstance(model, ResNet) else getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"`model` must be a ResNet or have a `backbone`, got {type(model).__name__}")
    section, given = _tensors(_read(checkpoint))
    wanted = backbone.state_dict()
    inner = {name[len(BACKBONE) :]: value for name, value in given.items() if name.startswith(BACKBONE)}
    given = max((given, inner), key=lambda names: len(names & wanted.keys()))
    taken, mismatched = {}, {}
    for name, value in given.items():
        if name in wanted and value.shape == wanted[name].shape:
            taken[name] = value
        elif name in wanted:
            mismatched[name] = (tuple(value.shape), tuple(wanted[name].shape))
    report = LoadReport(
        tuple(taken),
        tuple(name for name in given if name not in wanted),
        tuple(name for name in wanted if name not in given and not name.endswith(_COUNTER)),
        mismatched,
        section,
    )
    if not any(not name.endswith(_COUNTER) for name in taken):
        raise ValueError(
            f"`checkpoint` must have parameters of the backbone, such as {_some(tuple(wanted))}, "
            f"got {_some(tuple(given)) or 'no tensors'}; {report}"
        )
    backbone.load_state_dict(taken, strict=False)
    return report


def _read(checkpoint: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    if isinstance(checkpoint, Mapping):
        return checkpoint
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"`checkpoint` must be a mapping or a path, got {type(checkpoint).__name__}")
    path = Path(checkpoint)
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{path.name} needs safetensors: pip install safetensors") from error
        tensors: Mapping[str, Any] = load_file(path)
        return tensors
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise TypeError(f"`checkpoint` must hold a mapping, got {type(found).__name__} in {path.name}")
    return found


def _tensors(found: Mapping[str, Any]) -> tuple[str | None, dict[str, Tensor]]:
    """The entry that holds the model, and its tensors without wrappers' prefixes."""
    section = next((name for name in SECTIONS if isinstance(found.get(name), Mapping)), None)
    tensors = {}
    for name, value in (found if section is None else found[section]).items():
        if isinstance(value, Tensor):
            while name.startswith(WRAPPERS):
                name = name[name.index(".") + 1 :]
            tensors[name] = value
    return section, tensors


def _some(names: tuple[str, ...], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")

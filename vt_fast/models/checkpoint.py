"""Parameters of a ResNet that someone else trained, loaded into the trunk of one of our networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vt_fast.models.resnet import ResNet

# Where a training script's checkpoint keeps the model, the best first.
SECTIONS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What wrappers put before every name, and what a network calls its trunk.
WRAPPERS = ("module.", "_orig_mod.")
TRUNKS = ("trunk.", "backbone.")
# BatchNorm's count of batches: of no use where there is a momentum, and missing in old checkpoints.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_backbone` did, by names without the checkpoint's prefixes.

    Args:
        taken: parameters and buffers of the trunk that were set.
        left: in the checkpoint, and not in the trunk: the replaced stage, and mostly the classifier.
        missing: in the trunk, and not in the checkpoint: they are as they were. BatchNorm's counters of
            batches are not listed.
        mismatched: in both, with (the checkpoint's shape, the trunk's shape): they are as they were.
        section: the checkpoint's entry that was read, such as "state_dict"; None where it had no entries.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    section: str | None = None

    @property
    def complete(self) -> bool:
        """Whether everything in the trunk was set."""
        return not self.missing and not self.mismatched

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} taken, {len(self.left)} left in the checkpoint"]
        if self.missing:
            lines.append(f"missing in the checkpoint: {_some(self.missing)}")
        lines += [
            f"{name}: {given} in the checkpoint, {wanted} in the trunk"
            for name, (given, wanted) in self.mismatched.items()
        ]
        return "\n".join(lines)


def load_backbone(model: nn.Module, checkpoint: Mapping[str, Any] | str | os.PathLike[str]) -> LoadReport:
    """Load a ResNet of torchvision, timm or our own into the trunk of a model.

    Names and shapes decide. Of a checkpoint with several entries "state_dict_ema" or "model_ema" is read,
    else "state_dict" or "model"; prefixes of wrappers ("module.", "_orig_mod.") and of a trunk ("trunk.",
    "backbone.") are cut off. Files are read with `weights_only=True`: no code in them runs.

    Args:
        model: one with a `trunk`, such as a VTResNet, or a :class:`ResNet`, whose classifier is loaded too if
            it has the checkpoint's shape.
        checkpoint: a state dict, what a training script saved around one, or the path of a file: .safetensors
            (needs safetensors), else one of `torch.save`.

    Returns:
        What was taken and what was not: look at `complete`, or print it.

    Raises:
        TypeError: a model without a trunk, or a checkpoint that is neither a mapping nor a path.
        ValueError: nothing in the checkpoint fits, with reasons. The model is then as it was.
        ModuleNotFoundError: a .safetensors file, and safetensors is not installed.

    Example:
        >>> from vt_fast.models import VTResNet
        >>> report = load_backbone(VTResNet(18), ResNet(18, num_classes=1000).state_dict())
        >>> report.complete, report.left[-1]
        (True, 'fc.bias')
    """
    trunk = model if isinstance(model, ResNet) else getattr(model, "trunk", None)
    if not isinstance(trunk, nn.Module):
        raise TypeError(f"`model` must be a ResNet or have a `trunk`, got {type(model).__name__}")
    section, given = _tensors(_read(checkpoint))
    wanted = trunk.state_dict()
    given = max(
        (_within(given, prefix) for prefix in ("", *TRUNKS)), key=lambda names: len(names & wanted.keys())
    )
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
            f"`checkpoint` must have parameters of the trunk, such as {_some(tuple(wanted))}, "
            f"got {_some(tuple(given)) or 'no tensors'}; {report}"
        )
    trunk.load_state_dict(taken, strict=False)
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
    """The entry that holds the model, and its tensors by names without wrappers' prefixes."""
    section = next((name for name in SECTIONS if isinstance(found.get(name), Mapping)), None)
    tensors = {}
    for name, value in (found if section is None else found[section]).items():
        if isinstance(value, Tensor):
            while name.startswith(WRAPPERS):
                name = name[name.index(".") + 1 :]
            tensors[name] = value
    return section, tensors


def _within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix`, which is cut off."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _some(names: tuple[str, ...], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")

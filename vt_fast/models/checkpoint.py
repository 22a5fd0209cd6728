"""Load the parameters of a trained ResNet into the backbone of a network."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vt_fast import checks
from vt_fast.models.contexts import evaluating
from vt_fast.models.resnet import ResNet
from vt_fast.models.shapes import first_channels
from vt_fast.precision import FLOATING

# Entries of a training checkpoint that hold the model, the preferred ones first.
SECTIONS = ("state_dict_ema", "model_ema", "state_dict", "model", "ema")
# Prefixes that wrappers add to every name, and the prefix of a network's backbone.
WRAPPERS = ("module.", "_orig_mod.")
BACKBONE = "backbone."
# What modules have that only wrap another.
_WRAPPING = tuple((name.removesuffix("."),) for name in WRAPPERS)
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
        different: why the backbone computes something else than the checkpoint's network, although
            parameters fit: another depth, layers that it lacks, strides in other places; or that numbers are
            not finite, or overflow in the backbone's dtype.
        section: the checkpoint's entry that was read, such as "state_dict" or "model.ema"; None for a plain
            state dict.
        compared: whether the results of the two were compared, which needs the network itself.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    different: tuple[str, ...] = ()
    section: str | None = None
    compared: bool = False

    @property
    def complete(self) -> bool:
        """Whether everything in the backbone was set, and it computes what the checkpoint's network computes.

        A state dict does not tell all of that network, such as dilations, pooling or the kind of activation,
        so without `compared` this assumes a ResNet of torchvision's kind.
        """
        return not self.missing and not self.mismatched and not self.different

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} taken, {len(self.left)} left in the checkpoint"]
        if self.missing:
            lines.append(f"missing in the checkpoint: {_some(self.missing)}")
        lines += [
            f"{name}: {given} in the checkpoint, {wanted} in the backbone"
            for name, (given, wanted) in self.mismatched.items()
        ]
        if self.complete and not self.compared:
            lines.append("not compared with the checkpoint's network, which a state dict does not describe")
        return "\n".join([*lines, *self.different])


def load_backbone(
    model: nn.Module,
    checkpoint: nn.Module | Mapping[str, Any] | str | os.PathLike[str],
    *,
    prefix: str | None = None,
    stride_in_1x1: bool = False,
) -> LoadReport:
    """Load the parameters of a ResNet of torchvision, timm or this package into the backbone of a model.

    Parameters are matched by name and shape. If the checkpoint has several entries, "state_dict_ema" or
    "model_ema" is read, otherwise "state_dict", "model" or "ema". The prefixes "module.", "_orig_mod." and
    "backbone." are removed. The model keeps its dtype and gets copies; its meta tensors become tensors on the
    checkpoint's device. Files are read with `weights_only=True`, so no code in them runs. For images of
    another number of channels the first convolution does not fit and stays as it is; `mismatched` lists it.

    Args:
        model: a network with a `backbone`, such as a VTResNet, or a :class:`ResNet`, whose classifier is
            loaded too if its shape is the checkpoint's.
        checkpoint: a network; a state dict; a dict of a training script that contains one; or the path of a
            file: .safetensors (needs safetensors), or a file of `torch.save`. What a network's stages compute
            for random images is compared with what the backbone's compute, in float64 on the CPU.
        prefix: of the ResNet's names in the checkpoint, where that is another: "encoder." (segmentation
            models), "backbone.body." (torchvision's detectors), "encoder_q." (MoCo), "teacher.backbone."
            (DINO, whose "teacher" is an entry), the attribute's name of a LightningModule. All other names
            are ignored.
        stride_in_1x1: where the checkpoint's bottlenecks have their stride, which no state dict tells: False
            for torchvision and timm; see :class:`ResNet`.

    Returns:
        What was loaded and what was not: check `complete`, or print it.

    Raises:
        TypeError: a model without a backbone, or a checkpoint of another type.
        ValueError: nothing in the checkpoint fits, it holds no numbers (meta tensors), integers, 8-bit floats
            or tensors that are not dense, it has a name twice, or the file is damaged or holds more than
            tensors; the message says what. The model is then unchanged.
        ModuleNotFoundError: a .safetensors file, and safetensors is not installed.

    Example:
        >>> from vt_fast.models import VTResNet
        >>> report = load_backbone(VTResNet(18), ResNet(18, num_classes=1000))
        >>> report.complete, report.left[-1]
        (True, 'fc.bias')
    """
    backbone = model if isinstance(model, ResNet) else getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"`model` must be a ResNet or have a `backbone`, got {type(model).__name__}")
    checks.flag("stride_in_1x1", stride_in_1x1)
    network = checkpoint if isinstance(checkpoint, nn.Module) else None
    if isinstance(network, ResNet):
        stride_in_1x1 = network.stride_in_1x1
    section, prefix, given = _tensors(
        checkpoint.state_dict() if isinstance(checkpoint, nn.Module) else _read(checkpoint), prefix
    )
    wanted = backbone.state_dict()
    if prefix is None:
        prefix = max("", BACKBONE, key=lambda start: sum(start + name in given for name in wanted))
    elif not any(name.startswith(prefix) for name in given):
        raise ValueError(
            f"`prefix` must begin names of the checkpoint, got {prefix!r}, and they are {_some(tuple(given))}"
        )
    given = {name[len(prefix) :]: value for name, value in given.items() if name.startswith(prefix)}
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
        section=section,
    )
    if not any(not name.endswith(_COUNTER) for name in taken):
        raise ValueError(
            f"`checkpoint` must have parameters of the backbone, such as {_some(tuple(wanted))}, "
            f"got {_some(tuple(given)) or 'no tensors'}; {report}"
        )
    empty = tuple(name for name, value in taken.items() if value.is_meta)
    if empty:
        raise ValueError(f"`checkpoint` must hold numbers, got meta tensors: {_some(empty)}")
    others = tuple(
        f"{name} ({type(value).__name__} of {value.dtype}, {value.layout})"
        for name, value in taken.items()
        if (wanted[name].is_floating_point() and value.dtype not in FLOATING)
        or value.layout != torch.strided
        or type(value.detach()) is not Tensor
    )
    if others:
        raise ValueError(
            "`checkpoint` must hold plain dense tensors of floating-point numbers of 16 bits or more, got "
            f"{_some(others)}"
        )
    # Copies, so that an assigned tensor is not the checkpoint's, and all of them before the model changes.
    made = {name: value.detach().to(wanted[name].dtype, copy=True) for name, value in taken.items()}
    for assign in (True, False):
        part = {name: value for name, value in made.items() if wanted[name].is_meta == assign}
        if part:
            backbone.load_state_dict(part, strict=False, assign=assign)
    different = [*_other_layers(backbone, report.left), *_not_finite(made)]
    compared, results = False, None
    if network is not None and report.complete and not different:
        compared, results = _other_results(backbone, network, prefix)
    if results is not None or not compared:
        different += [*_other_strides(backbone, stride_in_1x1), *([] if results is None else [results])]
    return replace(report, different=tuple(different), compared=compared)


def _other_layers(backbone: nn.Module, left: Sequence[str]) -> list[str]:
    """The checkpoint's layers inside of children that the backbone keeps."""
    kept = {name for name, _ in backbone.named_children()} - {"fc"}
    layers = dict.fromkeys(name.rpartition(".")[0] for name in left if name.partition(".")[0] in kept)
    if not layers:
        return []
    return [f"layers of the checkpoint that the backbone lacks: {_some(tuple(layers))}"]


def _not_finite(made: Mapping[str, Tensor]) -> list[str]:
    names = tuple(f"{name} ({value.dtype})" for name, value in made.items() if not value.isfinite().all())
    return [f"numbers of the checkpoint that are not finite in the backbone: {_some(names)}"] if names else []


def _other_strides(backbone: nn.Module, stride_in_1x1: bool) -> list[str]:
    if not isinstance(backbone, ResNet) or not backbone.bottlenecks or len(backbone.channels) < 2:
        return []
    if backbone.stride_in_1x1 == stride_in_1x1:
        return []
    places = {True: "first 1x1 convolution", False: "3x3 convolution"}
    return [
        f"the backbone's bottlenecks have their stride in the {places[not stride_in_1x1]}, the checkpoint's "
        f"in the {places[stride_in_1x1]}: make the backbone with stride_in_1x1={stride_in_1x1}, or pass "
        f"stride_in_1x1={not stride_in_1x1} to load_backbone if the checkpoint is of such a network"
    ]


class _Found(Exception):
    """Ends a forward whose remaining layers need not run."""


def _other_results(backbone: nn.Module, network: nn.Module, prefix: str) -> tuple[bool, str | None]:
    """Whether the two could be compared, and the first stage that computes something else, or why not."""
    stages = [name for name, part in backbone.named_children() if any(True for _ in part.parameters())]
    if isinstance(backbone, ResNet):
        stages = [name for name in stages if name.startswith(("layer", "fc"))]
    else:
        stages = stages[-1:]  # the one map that it returns
    generator = torch.Generator().manual_seed(0)
    channels = first_channels(backbone) or 3
    images = torch.randn(2, channels, 64, 96, generator=generator, dtype=torch.float64)
    # Another module with one child may compute something of its own.
    while type(network).__module__.startswith("torch.") and tuple(network._modules) in _WRAPPING:
        (network,) = network.children()
    try:
        maps = _outputs(backbone, stages, images)
    except Exception as error:  # a user's module may raise anything
        return False, f"the backbone could not be compared: it raises {type(error).__name__}: {error}"
    try:
        theirs = _outputs(network.get_submodule(prefix.removesuffix(".")), stages, images)
    except Exception as error:
        return False, f"the network could not be compared: it raises {type(error).__name__}: {error}"
    if not stages:
        return False, "the network could not be compared: the backbone has no layers with parameters"
    for name in stages:
        for which, values in (("backbone", maps), ("network", theirs)):
            if name not in values:
                reason = f"it does not call {name} as a module that returns a tensor"
                return False, f"the {which} could not be compared: {reason}"
        found, expected = maps[name], theirs[name]
        if expected.shape != found.shape:
            shapes = f"{tuple(found.shape)}, the network's {tuple(expected.shape)}"
            return True, f"{name} returns {shapes}: another stride or dilation"
        off, size = float((found - expected).abs().max()), float(expected.abs().max())
        if not off <= 1e-6 * size:
            return True, f"{name} computes something else than the network's: off by {off:.2g} of {size:.2g}"
    return True, None


@torch.no_grad()
def _outputs(module: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """What the children of these names return for images, in float64 on the CPU and in evaluation mode."""
    found: dict[str, Tensor] = {}

    def keep(name: str, result: Any) -> None:
        if isinstance(result, Tensor):
            found[name] = result
        if len(found) == len(names):
            raise _Found

    exact = {
        name: _exact(name, value)
        for name, value in chain(module.named_parameters(), module.named_buffers())
        if not value.is_meta
    }
    children = dict(module.named_children())
    handles = [
        children[name].register_forward_hook(lambda _, args, result, name=name: keep(name, result))
        for name in names
        if name in children
    ]
    try:
        with evaluating(module), suppress(_Found):
            functional_call(module, exact, (images,))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _exact(name: str, value: Tensor) -> Tensor:
    # Neither TF32 nor the dtype of the parameters then decides how close two networks are.
    if value.is_floating_point():
        value = value.detach().to("cpu", torch.float64)
    # A norm's scale of zero, as in new networks, would hide what is before it.
    return value.new_ones(value.shape) if name.endswith("weight") and not value.any() else value.cpu()


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
    else:
        load_file = partial(torch.load, map_location="cpu", weights_only=True)
    try:
        found = load_file(path)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        more = (
            f", which holds a {refused[1]}"
            if refused
            else ", which torch.load cannot read with weights_only=True"
        )
        raise ValueError(
            f"`checkpoint` must hold tensors and plain values alone, got {path.name}{more}; if you trust it, "
            f"pass what torch.load(path, weights_only=False) returns"
        ) from error
    except Exception as error:  # an empty or truncated file may raise anything
        raise ValueError(
            f"`checkpoint` must be a complete file, got {path.name}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Mapping):
        raise TypeError(f"`checkpoint` must hold a mapping, got {type(found).__name__} in {path.name}")
    return found


def _tensors(
    found: Mapping[str, Any], prefix: str | None
) -> tuple[str | None, str | None, dict[str, Tensor]]:
    """The entry that holds the model, the prefix inside of it, and its tensors without wrappers' prefixes."""
    section: list[str] = []
    while True:
        entry, dot, rest = (prefix or "").partition(".")
        if dot and isinstance(found.get(entry), Mapping):
            name, prefix = entry, rest
        else:
            name = next((name for name in SECTIONS if _has_tensors(found.get(name))), "")
        if not name:
            break
        found = found[name]
        section.append(name)
    tensors = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            while name.startswith(WRAPPERS):
                name = name[name.index(".") + 1 :]
            if name in tensors:
                raise ValueError(
                    f"`checkpoint` must have {name} once, got it with a wrapper's prefix and without"
                )
            tensors[name] = value
    return ".".join(section) or None, prefix, tensors


def _has_tensors(entry: Any) -> bool:
    return isinstance(entry, Mapping) and (
        any(isinstance(value, Tensor) for value in entry.values())
        or any(_has_tensors(entry.get(name)) for name in SECTIONS)
    )


def _some(names: tuple[str, ...], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")

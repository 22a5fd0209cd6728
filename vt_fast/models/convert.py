"""One line that gives someone's own ResNet a VT stage."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from torch import nn

from vt_fast.models.resnet import ResNet
from vt_fast.models.shapes import first_channels, map_shape
from vt_fast.models.stage import VTStage

Model = TypeVar("Model", bound=nn.Module)
# More than in any of the paper's networks would be a network of another kind.
MOST_MODULES = 3
# Side of the map that the stage is tried on.
_SIDE = 32


def convert(
    model: Model,
    stage: str = "layer4",
    *,
    num_modules: int | None = None,
    channels: int | None = None,
    **options: Any,
) -> Model:
    """Replace a stage of a ResNet by VT modules, in place, and return the model.

    For a ResNet of torchvision, timm or your own, and any network that keeps its stages under names. The new
    stage returns as many channels as the old one, so that pooling and classifier stay as they are. It keeps
    the resolution of the map that it gets, as in the paper (14 x 14 for images of 224 x 224): where the old
    stage had a stride, what follows sees a larger map, which global pooling does not mind. What a model of
    timm says of its strides in `feature_info` is put right.

    Make the optimiser after this: the old stage's parameters are gone and the new ones are random.

    Args:
        model: it is changed. `copy.deepcopy` it before if you need both.
        stage: the name of the stage, "layer4" in ResNets; with dots inside of submodules.
        num_modules: by default as many as the stage has blocks, but at most 3: the paper's 2 for ResNet-18
            and 3 for the others.
        channels: of the map that comes in; by default what the stage's first convolution takes.
        **options: `num_tokens`, `token_channels`, `tokenizer`, `relation` and the other ablations of the
            paper, see :func:`vt_fast.models.vt_stack`; for `width` see :class:`vt_fast.models.VTStage`.

    Raises:
        TypeError: an option that there is not.
        ValueError: there is no such stage, or it takes no map or returns none. The model is then as it was.

    Example:
        >>> import torch
        >>> model = convert(ResNet(18, num_classes=10), tokenizer="pooling")
        >>> type(model.layer4[0]).__name__, model(torch.zeros(1, 3, 64, 64)).shape
        ('VTStage', torch.Size([1, 10]))
    """
    old, parent, name = _find(model, stage)
    if channels is None:
        channels = first_channels(old)
        if channels is None:
            raise ValueError(f"`channels` must be given for `{stage}`, which has no 2-D convolution")
    _, out_channels, height, _ = map_shape(stage, old, channels, _SIDE)
    if num_modules is None:
        num_modules = min(len(old), MOST_MODULES) if isinstance(old, nn.Sequential) else MOST_MODULES
    new = VTStage(channels, num_modules, out_channels, **options)
    like = next(old.parameters(), None)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    # In a Sequential, as what goes through a stage's blocks one by one takes it to be.
    parent.register_module(name, nn.Sequential(new).train(old.training))
    _tell_strides(model, stage, round(_SIDE / height))
    return model


def _find(model: nn.Module, stage: str) -> tuple[nn.Module, nn.Module, str]:
    """The stage, the module that it stands in, and its name there."""
    above, _, name = stage.rpartition(".")
    try:
        parent = model.get_submodule(above)
        old = parent.get_submodule(name) if name else None
    except AttributeError:
        old = None
    if old is None:
        known = ", ".join(child for child, _ in model.named_children())
        raise ValueError(f"`stage` must be the name of a submodule ({known}), got {stage!r}")
    return old, parent, name


def _tell_strides(model: nn.Module, stage: str, stride: int) -> None:
    """Divide by the lost stride what the model says of the strides of this stage and those after it."""
    found = re.match(r"layer(\d)", stage)
    if isinstance(model, ResNet) and found:
        index = int(found[1]) - 1
        model.strides = (*model.strides[:index], *(each // stride for each in model.strides[index:]))
    info = getattr(model, "feature_info", None)
    # timm: a list of dicts in models, and in their `features_only` form an object that holds one.
    entries = getattr(info, "info", info)
    reached = False
    for entry in entries if isinstance(entries, list) else []:
        reached = reached or entry["module"] == stage
        if reached:
            entry["reduction"] //= stride

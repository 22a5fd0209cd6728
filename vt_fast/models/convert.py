"""Give an existing ResNet a VT stage, in one line."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import torch
from torch import nn
from typing_extensions import Unpack

from vt_fast.models.resnet import ResNet
from vt_fast.models.shapes import Passed, Trial, first_channels, map_shape
from vt_fast.models.stage import TOKEN_CHANNELS, StageOptions, VTStage
from vt_fast.nn.members import spans_processes, unwrapped
from vt_fast.nn.options import check_keywords, spelled_out

Model = TypeVar("Model", bound=nn.Module)
# The largest number in the paper's networks.
MAX_BLOCKS = 3
# Side of the map that a stage is tried on where the network as a whole does not run.
_SIDE = 32


@spelled_out(VTStage.__init__, StageOptions)
def convert(
    model: Model,
    stage: str = "layer4",
    *,
    num_blocks: int | None = None,
    channels: int | None = None,
    width: int | None = None,
    **options: Unpack[StageOptions],
) -> Model:
    """Replace a stage of a ResNet by VT blocks, in place, and return the model.

    Works for ResNets of torchvision, timm or your own, and for any network whose stages are named submodules.
    The new stage returns as many channels as the old one, so pooling and classifier stay as they are. It
    keeps the resolution of its input, as in the paper (14 x 14 for images of 224 x 224): if the old stage had
    a stride, the layers after it get a larger map, which global pooling accepts. The strides in timm's
    `feature_info` are corrected. Every other submodule that is the same stage is replaced too.

    Create the optimizer after this call: the old stage's parameters are gone, and the new ones are random.
    Wrap the model after it too: hooks and wrappers of the old stage are gone.

    Args:
        model: modified in place. Use `copy.deepcopy` first to keep the original. What `torch.compile` returns
            is compiled again at its next call.
        stage: the name of the stage, "layer4" in ResNets; with dots inside submodules.
        num_blocks: by default the number of blocks of the old stage, but at most 3: the paper's 2 for
            ResNet-18 and 3 for the others.
        channels: of the incoming map; by default found by running the model on an image without data, and
            where it does not run, the input channels of the stage's first convolution.
        width: see :class:`VTStage`.
        **options: `num_tokens`, `token_channels`, `tokenizer`, `relation` and the other options of
            :class:`VTStage`. By default `group_width` is the largest up to 64 that fits all maps, which is 64
            in ResNets, and None where that would be below 8.

    Raises:
        TypeError: an unknown option, or a model that is scripted, traced, or shared out among processes by
            DDP, FSDP, `fully_shard` or `parallelize_module`.
        ValueError: there is no such stage, the model does not call it as a module, it does not map a feature
            map (B, C, H, W) to another, later layers do not take a map of the size of its input, or the model
            calls the old stage through something else than a submodule, such as a list. The model is then
            unchanged.

    Example:
        >>> import torch
        >>> model = convert(ResNet(18, num_classes=10), tokenizer="pooling")
        >>> type(model.layer4[0]).__name__, model(torch.zeros(1, 3, 64, 64)).shape
        ('VTStage', torch.Size([1, 10]))
    """
    check_keywords(convert, options)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"`model` must be converted before it is scripted, got {type(model).__name__}")
    for name, part in model.named_modules():
        if spans_processes(part):
            raise TypeError(
                "`model` must be converted before it is wrapped for several processes, got "
                f"{type(part).__name__} at {name!r}"
            )
    inside = unwrapped(model)
    old = _find(inside, stage)
    trial, (taken, returned) = _shapes(inside, stage, old, channels)
    channels, out_channels = taken[1], returned[1]
    if "group_width" not in options:
        inner = width or max(channels, min(out_channels, options.get("token_channels", TOKEN_CHANNELS)))
        options["group_width"] = _group_width(channels, inner, out_channels)
    if num_blocks is None:
        blocks = unwrapped(old)
        num_blocks = min(len(blocks), MAX_BLOCKS) if isinstance(blocks, nn.Sequential) else MAX_BLOCKS
    like = next(chain(old.parameters(), inside.parameters()), None)
    device, dtype = (None, None) if like is None else (like.device, like.dtype)
    new = VTStage(channels, num_blocks, out_channels, width=width, device=device, dtype=dtype, **options)
    # In a Sequential, because code that iterates over a stage's blocks expects one.
    made = nn.Sequential(new).train(old.training)
    if trial is not None:
        _try(trial, stage, made, Passed(taken, returned))
    _correct_strides(inside, stage, max(1, round(taken[2] / returned[2])))
    _replace(inside, old, made)
    return model


def _shapes(
    model: nn.Module, stage: str, old: nn.Module, channels: int | None
) -> tuple[Trial | None, Passed]:
    """The shapes of the stage's maps, and a copy of the network to try the new stage in, if it runs."""
    try:
        trial = Trial(model)
        trial.run(stage)
    except Exception as error:  # it takes no image, or has no forward, or tells something by its data
        channels = first_channels(old) if channels is None else channels
        if channels is None:
            raise ValueError(
                f"`channels` must be given for `{stage}`, which has no 2-D convolution, where the model does "
                f"not run on an image: {type(error).__name__}: {error}"
            ) from error
        return None, Passed((1, channels, _SIDE, _SIDE), map_shape(stage, old, channels, _SIDE))
    found = trial.passed()
    if channels not in (None, found.taken[1]):
        raise ValueError(f"`channels` must be {found.taken[1]}, those of the stage's map, got {channels}")
    return trial, found


def _try(trial: Trial, stage: str, made: nn.Module, found: Passed) -> None:
    calls = len(trial.calls)
    _replace(trial.model, trial.model.get_submodule(stage), trial.copied(made).eval())
    try:
        trial.run(stage)
    except Exception as error:  # a user's module may raise anything
        sizes = [f"{height} x {width}" for _, _, height, width in found]
        raise ValueError(
            f"`stage` must be followed by layers that take a map of {sizes[0]}, the size of the stage's "
            f"input, in place of {sizes[1]}, got {stage!r}: {type(error).__name__}: {error}"
        ) from error
    if len(trial.calls) != calls:
        raise ValueError(
            "`stage` must be reached through submodules alone, not through a list or a function, got "
            f"{stage!r}: {len(trial.calls)} of its {calls} calls reach the module in its place"
        )


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module by another wherever it is a submodule."""
    for part in list(model.modules()):
        for name, child in part._modules.items():
            if child is old:
                part.register_module(name, new)


def _group_width(channels: int, inner: int, out_channels: int) -> int | None:
    """The largest width up to 64 of groups that fit the maps of a stage; None where it would be below 8."""
    maps = (channels, inner, out_channels)
    for width in range(64, 7, -1):
        groups = [each // width for each in maps]
        if not any(each % width for each in maps) and not channels % groups[1] and not inner % groups[2]:
            return width
    return None


def _find(model: nn.Module, stage: str) -> nn.Module:
    try:
        old = model.get_submodule(stage) if stage else None
    except AttributeError:
        old = None
    if old is None:
        known = ", ".join(child for child, _ in model.named_children())
        raise ValueError(f"`stage` must be the name of a submodule ({known}), got {stage!r}")
    return old


def _correct_strides(model: nn.Module, stage: str, stride: int) -> None:
    """Correct the strides that the modules around this stage report for it and for later layers."""
    done, parts = set[int](), stage.split(".")
    for depth in range(len(parts)):
        owner, inside = model.get_submodule(".".join(parts[:depth])), ".".join(parts[depth:])
        if isinstance(owner, ResNet):
            owner.strides = tuple(
                each // stride if _reaches(owner, inside, f"layer{index + 1}") else each
                for index, each in enumerate(owner.strides)
            )
        info = getattr(owner, "feature_info", None)
        # timm: a list of dicts in models, or an object that holds one in their `features_only` form.
        entries = getattr(info, "info", info)
        for entry in entries if isinstance(entries, list) else []:
            if id(entry) not in done and _reaches(owner, inside, entry["module"]):
                entry["reduction"] //= stride
                done.add(id(entry))


def _reaches(model: nn.Module, stage: str, later: str) -> bool:
    """Whether a stage is part of a submodule, or before it in the order in which they were made."""
    names = [name for name, _ in model.named_modules()]
    # timm's `features_only` form has the children of a Sequential as children of its own.
    ends = [
        max((index for index, name in enumerate(names) if f"{name}.".startswith(each)), default=-1)
        for each in (f"{stage}.", f"{later}.", f"{later.replace('.', '_')}.")
    ]
    return ends[0] <= max(ends[1:])

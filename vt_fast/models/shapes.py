"""The shapes of maps inside a network, found by running it on a tensor without data."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from vt_fast.models.contexts import evaluating

#: Side of the image that a backbone is tried on. Backbones of a fixed size mostly take this one.
IMAGE = 224

Shape = tuple[int, int, int, int]


def map_shape(name: str, module: nn.Module, channels: int, side: int) -> Shape:
    """The shape (B, C, H, W) of the output of `module` for a map of `channels` x `side` x `side`.

    The map is a fake tensor and the module is in evaluation mode, so nothing is computed and no state
    changes.

    Args:
        name: the module's name in messages.
        module: any module with one argument.
        channels: of the input map.
        side: height and width of the input map.

    Raises:
        ValueError: the module fails on such a map, or does not return a (B, C, H, W) tensor.

    Example:
        >>> map_shape("stage", nn.Conv2d(8, 16, 3, stride=2, padding=1), 8, 16)
        (1, 16, 8, 8)
    """
    like = next(module.parameters(), torch.empty(0))
    try:
        with evaluating(module), _without_data(FakeTensorMode(allow_non_fake_inputs=True)):
            found = module(torch.empty(1, channels, side, side, dtype=like.dtype, device=like.device))
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"`{name}` must take a map (1, {channels}, {side}, {side}), got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.dim() != 4:
        raise ValueError(f"`{name}` must return a map (B, C, H, W), got {_described(found)}")
    return cast(Shape, tuple(found.shape))


class Passed(NamedTuple):
    """The shapes of the maps that a stage takes and returns."""

    taken: Shape
    returned: Shape


class Trial:
    """A copy of a network without data, which runs on an image without data.

    Nothing is computed, and neither the network nor what its hooks refer to changes.

    Raises:
        Exception: whatever the network raises when it is copied.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 16, 3, stride=2, padding=1))
        >>> trial = Trial(net)
        >>> trial.run("1")
        >>> trial.passed()
        Passed(taken=(1, 8, 56, 56), returned=(1, 16, 28, 28))
    """

    def __init__(self, model: nn.Module) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.model = self.copied(model).eval()
        self.stage, self.calls = "", list[tuple[list[Any], Any]]()
        for part in self.model.modules():
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        like = next(self.model.parameters(), torch.empty(0))
        with self.mode:
            channels = getattr(model, "in_chans", None) or first_channels(model) or 3
            size = (1, channels, *_image_size(model))
            self.image = torch.empty(size, dtype=like.dtype, device=like.device)

    def copied(self, module: nn.Module) -> nn.Module:
        """A copy of a module whose tensors have no data."""
        with FakeCopyMode(self.mode):  # type: ignore[no-untyped-call]
            return copy.deepcopy(module)

    def run(self, stage: str | None = None) -> None:
        """Run the copy, and note what it passes to this submodule, if any, and gets from it.

        Raises:
            Exception: whatever the network raises.
        """
        if stage is None:
            handle = None
        else:
            self.stage, self.calls = stage, []
            handle = self.model.get_submodule(stage).register_forward_hook(self._note, with_kwargs=True)
        try:
            with _without_data(self.mode):
                self.model(self.image)
        finally:
            if handle is not None:
                handle.remove()

    def _note(self, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        self.calls.append(([*args, *options.values()], result))

    def passed(self) -> Passed:
        """The shapes of the maps that the noted submodule takes and returns.

        Raises:
            ValueError: the network does not call it, or it takes or returns something else than a map.
        """
        if not self.calls:
            raise ValueError(f"`stage` must be a module that the network calls, got {self.stage!r}")
        given, result = self.calls[0]
        return Passed(self._map(given[0] if len(given) == 1 else given, "take"), self._map(result, "return"))

    def _map(self, value: Any, verb: str) -> Shape:
        # In (B, H, W, C) the last two sizes differ for a square image.
        square = self.image.shape[-1] == self.image.shape[-2]
        if not isinstance(value, Tensor) or value.dim() != 4 or (square and value.shape[2] != value.shape[3]):
            raise ValueError(f"`{self.stage}` must {verb} a map (B, C, H, W), got {_described(value)}")
        return cast(Shape, tuple(value.shape))


def first_channels(module: nn.Module) -> int | None:
    """Input channels of the first 2-D convolution in `module`; None if there is none."""
    convolution = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    return None if convolution is None else convolution.in_channels


@contextmanager
def _without_data(mode: FakeTensorMode) -> Iterator[None]:
    """Modules run on tensors without data; errors are raised and not logged too, on this thread."""
    log, own = logging.getLogger("torch._subclasses.fake_tensor"), threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != own

    log.addFilter(of_others)
    try:
        # What `torch.compile` makes of a part would read memory that such a tensor does not have.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), mode:
            yield
    finally:
        log.removeFilter(of_others)


def _image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that the network takes, which timm's models tell."""
    described = getattr(model, "pretrained_cfg", None)
    size = described.get("input_size") if isinstance(described, Mapping) else None
    return (IMAGE, IMAGE) if size is None else (size[-2], size[-1])


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, list | tuple):
        return f"{len(value)} values: {', '.join(map(_described, value))}"
    return type(value).__name__

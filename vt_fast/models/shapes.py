"""The shape of a module's map, found by running it on a tensor without data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vt_fast.models.contexts import evaluating

#: Side of the image that a backbone is tried on. Backbones of a fixed size mostly take this one.
IMAGE = 224


def map_shape(name: str, module: nn.Module, channels: int, side: int) -> tuple[int, int, int, int]:
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
        with torch.no_grad(), evaluating(module), FakeTensorMode(allow_non_fake_inputs=True):
            found = module(torch.empty(1, channels, side, side, dtype=like.dtype, device=like.device))
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"`{name}` must take a map (1, {channels}, {side}, {side}), got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.dim() != 4:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"`{name}` must return a map (B, C, H, W), got {got}")
    return found.shape[0], found.shape[1], found.shape[2], found.shape[3]


def first_channels(module: nn.Module) -> int | None:
    """Input channels of the first 2-D convolution in `module`; None if there is none."""
    convolution = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    return None if convolution is None else convolution.in_channels

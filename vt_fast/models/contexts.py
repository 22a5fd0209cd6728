"""Context managers for building and trying modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.types import Device


def on_device(device: Device) -> AbstractContextManager[Any]:
    """Create new tensors on `device`, or where they go by default if it is None.

    Reaches modules whose constructor takes no device, such as those that a `norm_layer` makes.

    Example:
        >>> with on_device("meta"):
        ...     nn.Linear(2, 3).weight.device
        device(type='meta')
    """
    return nullcontext() if device is None else torch.device(device)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` and all its parts in evaluation mode, and restore each part's mode at the end.

    Example:
        >>> module = nn.Dropout()
        >>> with evaluating(module):
        ...     module.training
        False
        >>> module.training
        True
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training

"""Checkpoints that a killed process leaves whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save(content: Any, path: Path) -> None:
    """Write ``content`` so that ``path`` always holds a whole checkpoint: the one before or this one.

    It is written beside ``path``, flushed to the disk, and then renamed.
    """
    beside = path.with_name(f"{path.name}.part")
    with beside.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    if os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: Path) -> Any:
    """What ``save`` has written, on the CPU. Data only: no code in the file is run."""
    return torch.load(path, map_location="cpu", weights_only=True)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file: a plain state dict, or a checkpoint of a run, its moving average first.

    Raises:
        ValueError: the file holds neither.
    """
    content = load(path)
    for name in ("ema", "net"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not all(isinstance(each, torch.Tensor) for each in content.values()):
        raise ValueError(f"{path} holds no weights")
    return content

"""Checkpoints that stay intact if the process is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save(content: Any, path: Path) -> None:
    """Write ``content`` so that ``path`` always holds a complete checkpoint, the previous one or this one.

    It is written beside ``path``, flushed to disk, and then renamed.
    """
    beside = path.with_name(f"{path.name}.part")
    with beside.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    if os.name == "posix":  # so that the rename reaches the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: Path) -> Any:
    """Read a file of ``save`` onto the CPU. No code in it runs."""
    return torch.load(path, map_location="cpu", weights_only=True)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file: a state dict, or a checkpoint of a run, whose moving average is preferred.

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

"""What patch_sam.py, patch_timm.py, patch_perceiver.py and patch_open_clip.py share."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import vt_fast


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options of all scripts."""
    made = argparse.ArgumentParser(description=text)
    made.add_argument("picture", type=Path, nargs="?", help="default: a photograph of scikit-learn's")
    made.add_argument("--weights", type=Path, metavar="FILE", help="a state dict; default: random weights")
    made.add_argument("--repeats", type=int, default=3, help="how often each call is timed")
    made.add_argument("--tiny", action="store_true", help="a tiny model: does it run?")
    return made


def pixels(path: Path | None) -> NDArray[np.uint8]:
    """A picture (H, W, 3)."""
    if path is not None:
        return np.array(Image.open(path).convert("RGB"))
    from sklearn.datasets import load_sample_image

    return np.array(load_sample_image("china.jpg"))


def square(path: Path | None, size: int) -> Tensor:
    """A picture (1, 3, size, size) with values of about -2 to 2."""
    image = Image.fromarray(pixels(path)).resize((size, size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 64 - 2


def load(model: nn.Module, weights: Path | None) -> nn.Module:
    """The model in evaluation mode, with the weights of a file if one is given."""
    if weights is not None:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def compare(model: nn.Module, call: Callable[[], Tensor], repeats: int) -> float:
    """Patch the model and print the report, the times before and after, and how much the results differ.

    Returns:
        The largest difference, relative to the largest result.
    """
    with torch.no_grad():
        expected, before = call(), _seconds(call, repeats)
        print(vt_fast.patch(model))
        found, after = call(), _seconds(call, repeats)
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(f"{before:.3f} s before, {after:.3f} s after: {before / after:.2f} times as fast")
    print(f"largest difference: {difference:.1e} of the largest result")
    return difference


def _seconds(call: Callable[[], Tensor], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)

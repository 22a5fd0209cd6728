"""Classify a picture with a vision transformer of timm, before and after `vt_fast.patch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import patching


def main(arguments: Sequence[str] | None = None) -> float:
    """Compare, and return the difference."""
    import timm

    parser = patching.parser(__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224", help="any that is read at its class token")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    small: Any = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 4} if options.tiny else {}
    model: Any = patching.load(timm.create_model(options.model, **small), options.weights)
    size = 64 if options.tiny else model.pretrained_cfg["input_size"][-1]
    image = patching.square(options.picture, size)
    return patching.compare(model, lambda: model(image), options.repeats)


if __name__ == "__main__":
    main()

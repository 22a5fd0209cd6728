"""Embed a picture with CLIP's ResNet-50 of open_clip, before and after `vt_fast.patch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import patching


def main(arguments: Sequence[str] | None = None) -> float:
    """Compare, and return the difference."""
    from open_clip.modified_resnet import ModifiedResNet

    options = patching.parser(__doc__).parse_args(arguments)
    torch.manual_seed(0)
    sizes: Any = ([1, 1, 1, 1], 32, 4, 64, 8) if options.tiny else ([3, 4, 6, 3], 1024, 32, 224, 64)
    model = patching.load(ModifiedResNet(*sizes), options.weights)
    image = patching.square(options.picture, sizes[3])
    return patching.compare(model, lambda: model(image), options.repeats)


if __name__ == "__main__":
    main()

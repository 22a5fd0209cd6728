"""Classify a picture with perceiver-pytorch, which looks at all pixels, before and after `vt_fast.patch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import patching


def main(arguments: Sequence[str] | None = None) -> float:
    """Compare, and return the difference."""
    from perceiver_pytorch import Perceiver

    options = patching.parser(__doc__).parse_args(arguments)
    torch.manual_seed(0)
    depth, latents = (2, 8) if options.tiny else (6, 256)
    model = Perceiver(num_freq_bands=6, max_freq=10.0, depth=depth, num_latents=latents)
    patching.load(model, options.weights)
    image = patching.square(options.picture, 32 if options.tiny else 224).permute(0, 2, 3, 1)
    return patching.compare(model, lambda: model(image), options.repeats)


if __name__ == "__main__":
    main()

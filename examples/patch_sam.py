"""Segment everything in a picture with segment-anything, before and after `vt_fast.patch`.

The masks of a grid of points, in batches of 64, as SamAutomaticMaskGenerator computes them before it filters.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import patching


def main(arguments: Sequence[str] | None = None) -> float:
    """Compare, and return the difference."""
    from segment_anything import SamPredictor, sam_model_registry

    options = _parser().parse_args(arguments)
    torch.manual_seed(0)
    model = tiny() if options.tiny else sam_model_registry[options.model]()
    predictor = SamPredictor(patching.load(model, options.weights))

    def everything() -> Tensor:
        image = patching.pixels(options.picture)
        predictor.set_image(image)
        steps = (torch.arange(options.points) + 0.5) / options.points
        grid = torch.cartesian_prod(steps * image.shape[1], steps * image.shape[0])[:, None]
        points = predictor.transform.apply_coords_torch(grid, image.shape[:2])
        labels = torch.ones(len(points), 1, dtype=torch.int)
        parts = zip(points.split(64), labels.split(64), strict=True)
        return torch.cat([predictor.predict_torch(*part, return_logits=True)[2] for part in parts])

    return patching.compare(model, everything, options.repeats)


def _parser() -> argparse.ArgumentParser:
    parser = patching.parser(__doc__)
    parser.add_argument("--model", choices=("vit_b", "vit_l", "vit_h"), default="vit_b")
    parser.add_argument("--points", type=int, default=16, help="in a row of the grid; the generator has 32")
    return parser


def tiny() -> nn.Module:
    """A SAM on images of 128 x 128."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = ImageEncoderViT(img_size=128, depth=1, embed_dim=32, num_heads=2, out_chans=32)
    prompts = PromptEncoder(32, (8, 8), (128, 128), 16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=2, mlp_dim=64)
    model: nn.Module = Sam(encoder, prompts, MaskDecoder(transformer_dim=32, transformer=transformer))
    return model


if __name__ == "__main__":
    main()

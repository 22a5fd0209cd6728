"""What the tests of the folds share: sizes, parameters, and the fold of a projection onto rows."""

import torch

B, H, W, C, L, CT = 2, 3, 4, 12, 5, 8
N = H * W


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def weight(out, width, groups=1):
    """The weight of a 1x1 convolution, of a size that keeps what comes out of order 1."""
    return randn(out, width // groups) * (groups / width) ** 0.5


def pixels_and_tokens():
    return {"x": randn(B, N, C), "tokens": randn(B, L, CT)}


def as_map(x):
    return x.transpose(1, 2).unflatten(2, (H, W))


def as_pixels(feature_map):
    return feature_map.flatten(2).transpose(1, 2)


def back(rows, weight, groups=1):
    """Rows (.., out) times the transpose of a grouped convolution's weight: (.., in), block by block."""
    blocks = zip(rows.chunk(groups, -1), weight.chunk(groups), strict=True)
    return torch.cat([block @ part for block, part in blocks], -1)

"""Hand-made features of a photograph's pixels, as the input of the clustering tokenizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CAPTION = "features: Lab colour at three scales, edge strength at two, position; nothing is learned"

_POSITION_WEIGHT = 0.7
_EDGE_WEIGHT = 0.7


def pixel_features(pixels: Tensor) -> Tensor:
    """Describe each pixel by colour, texture and position: (3, H, W) in [0, 1] -> (1, 14, H, W).

    Lab colour at full resolution and at two blurs, edge strength averaged over two neighbourhoods, row and
    column; each standardised over the picture. The last feature is a constant: the k-means compares
    directions, and a pixel of average colour has none without it.
    """
    lab = rgb_to_lab(pixels)[None]
    side = max(pixels.shape[1:])
    near, far = blur(lab, side / 200), blur(lab, side / 60)
    edges = _edge_strength(near[:, :1])
    texture = torch.cat([blur(edges, side / 100), blur(edges, side / 40)], 1)
    rows = torch.linspace(-1, 1, pixels.shape[1]).view(1, 1, -1, 1).expand_as(edges)
    columns = torch.linspace(-1, 1, pixels.shape[2]).view(1, 1, 1, -1).expand_as(edges)
    parts = [
        _standard(torch.cat([lab, near, far], 1)),
        _EDGE_WEIGHT * _standard(texture.sqrt()),
        _POSITION_WEIGHT * _standard(torch.cat([rows, columns], 1)),
        torch.ones_like(edges),
    ]
    return torch.cat(parts, 1)


def rgb_to_lab(pixels: Tensor) -> Tensor:
    """CIE Lab (D65) of sRGB pixels: (3, H, W) in [0, 1] -> (3, H, W), lightness in [0, 100].

    >>> rgb_to_lab(torch.ones(3, 1, 1)).round().abs().flatten().tolist()
    [100.0, 0.0, 0.0]
    """
    linear = torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    to_xyz = pixels.new_tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    # Rows that sum to 1: white is (1, 1, 1).
    xyz = torch.einsum("ij,jhw->ihw", to_xyz / to_xyz.sum(1, keepdim=True), linear)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-12) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (1, C, H, W) with replicated edges.

    >>> float(blur(torch.ones(1, 1, 4, 5), 1.5).sub(1).abs().max()) < 1e-6
    True
    """
    radius = max(1, math.ceil(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (offsets / max(sigma, 1e-3)) ** 2)
    kernel = kernel / kernel.sum()
    channels = maps.transpose(0, 1)
    channels = F.conv2d(F.pad(channels, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    channels = F.conv2d(F.pad(channels, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    return channels.transpose(0, 1)


def _edge_strength(lightness: Tensor) -> Tensor:
    padded = F.pad(lightness, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.hypot(across, down)


def _standard(maps: Tensor) -> Tensor:
    """Zero mean and unit deviation for each channel; a constant channel becomes 0."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    deviation = centred.square().mean((2, 3), keepdim=True).sqrt()
    return centred / torch.where(deviation > 1e-4, deviation, 1.0)

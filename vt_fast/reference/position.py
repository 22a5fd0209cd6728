"""Position codes: what a token's attention map says about where the token looks.

Both codes are linear in the attention, so each equals A^T E for a table E (N, P) that the batch shares: row n
of E is the code of a map that is 1 at pixel n and 0 elsewhere. These are the plain forms, without the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vt_fast.reference._checks import check_count, check_shape


def resize_matrix(
    source: int, target: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Return the one-dimensional bilinear resize as a matrix.

    Applied to both sides of a map it is `torch.nn.functional.interpolate` with mode "bilinear", pixel centres
    aligned (``align_corners=False``) and no antialiasing: resize_matrix(H, h) X resize_matrix(W, w)^T.

    Args:
        source: length before.
        target: length after.
        dtype: of the result; the coordinates are computed in float64 and rounded once.
        device: of the result.

    Returns:
        (target, source); each row sums to 1 and has at most two entries that are not 0.

    Raises:
        ValueError: a length is below 1.

    Example:
        >>> resize_matrix(4, 2).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    check_count("source", source)
    check_count("target", target)
    centres = torch.arange(target, dtype=torch.float64, device=device) + 0.5
    coordinates = (centres * (source / target) - 0.5).clamp(0, source - 1)
    distances = (coordinates[:, None] - torch.arange(source, device=device)).abs()
    return (1 - distances).clamp(min=0).to(torch.get_default_dtype() if dtype is None else dtype)


def _resized_attention(attention: Tensor, size: tuple[int, int], grid: int) -> Tensor:
    """Return the attention (B, N, L) as maps (B, L, S, S)."""
    height, width = size
    check_count("grid", grid)
    check_shape("attention", attention, B=None, N=height * width, L=None)
    maps = attention.transpose(1, 2).reshape(attention.shape[0], attention.shape[2], height, width)
    return F.interpolate(maps, size=(grid, grid), mode="bilinear", align_corners=False)


def linear_position_code(attention: Tensor, size: tuple[int, int], grid: int, weight: Tensor) -> Tensor:
    """Simple position code: downsample A to S x S, flatten it, multiply by W_{A->P}.

    Args:
        attention: A (B, N, L).
        size: (H, W) with N = H W, row-major.
        grid: S. The resize is bilinear, as PyTorch does it, up or down.
        weight: W_{A->P} (S S, P).

    Returns:
        codes (B, L, P).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> attention = torch.tensor([[[0.1], [0.2], [0.3], [0.4]]])  # 2 x 2 pixels, one token
        >>> code = linear_position_code(attention, (2, 2), 2, torch.eye(4))
        >>> torch.equal(code, attention.transpose(1, 2))
        True
    """
    maps = _resized_attention(attention, size, grid)
    check_shape("weight", weight, **{"S * S": grid * grid, "P": None})
    return maps.flatten(2) @ weight


def conv_position_code(
    attention: Tensor,
    size: tuple[int, int],
    grid: int,
    convolutions: Sequence[Tensor],
    mix: Tensor,
    weight: Tensor,
) -> Tensor:
    """First version's position code: downsample A, convolve it, flatten it, multiply by a learned matrix.

    Each token's map goes through the same convolutions on its own, as an image of one channel: resized to
    S x S, n 3x3 convolutions of stride 2 and padding 1, a 1x1 to one channel, and the Cp = S S / 4^n numbers
    left (S = 14, n = 1: 49) times a matrix. Two choices where the paper is silent: no activation between the
    convolutions, so that the code is linear in A and folds into a table; and no convolution bias, as in the
    authors' code.

    Args:
        attention: A (B, N, L).
        size: (H, W) with N = H W, row-major.
        grid: S; if a convolution meets an odd side it rounds the half up, and Cp follows.
        convolutions: n kernels (out, in, 3, 3), the first with in = 1.
        mix: (1, in, 1, 1), the 1x1 convolution to one channel.
        weight: (Cp, P).

    Returns:
        codes (B, L, P).

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> attention = torch.full((2, 28 * 28, 16), 1 / 784)
        >>> kernels = [torch.ones(4, 1, 3, 3)]
        >>> mix, weight = torch.ones(1, 4, 1, 1), torch.ones(49, 8)
        >>> conv_position_code(attention, (28, 28), 14, kernels, mix, weight).shape
        torch.Size([2, 16, 8])
    """
    maps = _resized_attention(attention, size, grid)
    batch, num_tokens = maps.shape[:2]
    maps = maps.flatten(0, 1).unsqueeze(1)
    for index, kernel in enumerate(convolutions):
        check_shape(f"convolutions[{index}]", kernel, **{"out": None, "in": maps.shape[1], "kh": 3, "kw": 3})
        maps = F.conv2d(maps, kernel, stride=2, padding=1)
    check_shape("mix", mix, **{"out": 1, "in": maps.shape[1], "kh": 1, "kw": 1})
    numbers: Tensor = F.conv2d(maps, mix).flatten(1).unflatten(0, (batch, num_tokens))
    check_shape("weight", weight, Cp=numbers.shape[2], P=None)
    return numbers @ weight

"""project in plain PyTorch: one pass over the map forward, one backward."""

from __future__ import annotations

from torch import Tensor

from vt_fast.backends.eager.blocks import expand
from vt_fast.backends.eager.spreading import Spread, SpreadBackward
from vt_fast.backends.eager.tiles import PixelWriter, pixel_tiles, read_tile, sample_groups
from vt_fast.layout import as_pixels


def project(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_input: bool,
    heads: int,
) -> Tensor:
    """The map (B, N, D) or (B, D, H, W)."""
    pixels = as_pixels(x)
    skip = pixels if residual_input else None if residual is None else as_pixels(residual)
    spread = Spread.prepare(keys, values, bias, heads)
    out = PixelWriter(x, values.shape[-1])
    for samples in sample_groups(pixels):
        group, tokens = pixels[samples], spread.group(samples)
        for tile in pixel_tiles(group):
            attention = tokens.attention(read_tile(group, tile))
            out.write(samples, tile, tokens.output(attention, None if skip is None else skip[samples, tile]))
    return out.finish()


def project_backward(
    grad_map: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual_input: bool,
    heads: int,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, keys, values and bias, None where ``needs`` says so.

    Small gradients come in the compute dtype. A residual map's gradient is ``grad_map`` itself.
    """
    pixels, grads = as_pixels(x), as_pixels(grad_map)
    spread = Spread.prepare(keys, values, bias, heads)
    backward = SpreadBackward(keys, values, bias, needs[1:])
    dx = PixelWriter(x, pixels.shape[2]) if needs[0] else None
    for samples in sample_groups(pixels):
        group, group_grads, tokens = pixels[samples], grads[samples], spread.group(samples)
        for tile in pixel_tiles(group):
            pixel_values, grad = read_tile(group, tile), read_tile(group_grads, tile)
            grad_logits = backward.tile(tokens, pixel_values, tokens.attention(pixel_values), grad)
            if dx is not None:
                dx_tile = expand(grad_logits, tokens.keys)
                dx.write(samples, tile, dx_tile.add_(grad) if residual_input else dx_tile)
        backward.end_group()
    return (None if dx is None else dx.finish(), *backward.result())

"""project in plain PyTorch: one pass over the map forward, one backward."""

from __future__ import annotations

from torch import Tensor

from vt_fast.backends.contract import Project, ProjectBackward, ProjectGradients
from vt_fast.backends.eager import tiles
from vt_fast.backends.eager.blocks import expand
from vt_fast.backends.eager.token_softmax import TokenSoftmax, TokenSoftmaxBackward, residual_pixels
from vt_fast.layout import as_pixels


def project(call: Project) -> Tensor:
    """The map (B, N, D) or (B, D, H, W)."""
    pixels = as_pixels(call.x)
    added = residual_pixels(pixels, call.residual, call.residual_is_input)
    softmax = TokenSoftmax.prepare(call.keys, call.values, call.token_bias, call.num_heads)
    out = tiles.PixelWriter(call.x, call.values.shape[-1])
    tiling = tiles.Tiling(pixels, call.keys.shape[-2], call.values.shape[-1])
    for samples in tiling.groups():
        group, group_residual, tokens = pixels[samples], tiles.part(added, samples), softmax.group(samples)
        for tile in tiling.tiles(samples):
            attention = tokens.attention(tiles.read_tile(group, tile))
            target = out.tile(samples, tile)
            out.write(samples, tile, tokens.output(attention, group_residual, tile, target))
    return out.finish()


def project_backward(call: ProjectBackward) -> ProjectGradients:
    """The gradients that are needed, in one pass over the map and its gradient."""
    pixels, grads = as_pixels(call.x), as_pixels(call.grad_map)
    softmax = TokenSoftmax.prepare(call.keys, call.values, call.token_bias, call.num_heads)
    backward = TokenSoftmaxBackward(call.keys, call.values, call.token_bias, call.needs[1:])
    dx = tiles.PixelWriter(call.x, pixels.shape[2]) if call.needs[0] else None
    tiling = tiles.Tiling(pixels, call.keys.shape[-2], call.values.shape[-1])
    for samples in tiling.groups():
        group, group_grads, tokens = pixels[samples], grads[samples], softmax.group(samples)
        for tile in tiling.tiles(samples):
            values, grad = tiles.read_tile(group, tile), tiles.read_tile(group_grads, tile)
            grad_logits = backward.tile(tokens, values, tokens.attention(values), grad)
            if dx is not None:
                target = expand(grad_logits, tokens.keys, dx.tile(samples, tile))
                dx.write(samples, tile, target.add_(grad) if call.residual_is_input else target)
        backward.end_group()
    return ProjectGradients(None if dx is None else dx.finish(), *backward.result())

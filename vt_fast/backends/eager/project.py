"""project in plain PyTorch: one pass over the map forward, one backward."""

from __future__ import annotations

from torch import Tensor

from vt_fast.backends.contract import Project, ProjectBackward, ProjectGradients, row_count
from vt_fast.backends.eager import tiles
from vt_fast.backends.eager.logits import score_pixels
from vt_fast.backends.eager.spreading import Spread, SpreadBackward, residual_pixels
from vt_fast.layout import as_pixels


def project(call: Project) -> Tensor:
    """The map (B, N, D) or (B, D, H, W)."""
    pixels, scores = as_pixels(call.x), score_pixels(call.scores, call.offsets)
    added = residual_pixels(pixels, call.residual, call.residual_is_input)
    spread, tiling = Spread.prepare(call), _tiling(call, pixels)
    out = tiles.PixelWriter(call.x, call.values.shape[-1], tiling)
    for samples in tiling.groups():
        group, group_residual = tiling.part(pixels, samples), tiling.part(added, samples)
        group_scores, group_spread = tiling.part(scores, samples), spread.group(samples)
        for tile in tiling.tiles(samples):
            weights = group_spread.weights(
                tiles.read_tile(group, tile), tiles.read_optional(group_scores, tile, group)
            )
            target = out.tile(samples, tile)
            out.write(samples, tile, group_spread.output(weights, group_residual, tile, target))
    return out.finish()


def project_backward(call: ProjectBackward) -> ProjectGradients:
    """The gradients that are needed, in one pass over the map and its gradient."""
    pixels, grads, needs = as_pixels(call.x), as_pixels(call.grad_map), call.needs
    scores = score_pixels(call.scores, call.offsets)
    spread, tiling = Spread.prepare(call), _tiling(call, pixels)
    backward = SpreadBackward(call, spread, needs[1:4])
    dx = tiles.PixelWriter(call.x, pixels.shape[2], tiling) if needs[0] else None
    dscores = call.scores.new_zeros(call.scores.shape) if call.scores is not None and needs[4] else None
    dscores_pixels = score_pixels(dscores, call.offsets)
    for samples in tiling.groups():
        group, group_grads = tiling.part(pixels, samples), tiling.part(grads, samples)
        group_scores, group_spread = tiling.part(scores, samples), spread.group(samples)
        for tile in tiling.tiles(samples):
            values, grad = tiles.read_tile(group, tile), tiles.read_tile(group_grads, tile)
            weights = group_spread.weights(values, tiles.read_optional(group_scores, tile, group))
            grad_logits = backward.tile(group_spread, values, weights, grad)
            if dx is not None:
                target = group_spread.logits.grad_pixels(grad_logits, dx.tile(samples, tile), add=False)
                dx.write(samples, tile, target.add_(grad) if call.residual_is_input else target)
            if dscores_pixels is not None:
                tiling.part(dscores_pixels, samples)[:, tile] = grad_logits.mT
        backward.end_group()
    dkeys, dvalues, dtoken_bias = backward.result()
    return ProjectGradients(None if dx is None else dx.finish(), dkeys, dvalues, dtoken_bias, dscores)


def _tiling(call: Project | ProjectBackward, pixels: Tensor) -> tiles.Tiling:
    rows = row_count(call.keys, call.scores, call.offsets)
    return tiles.Tiling(pixels, rows, call.values.shape[-1], offsets=call.offsets)

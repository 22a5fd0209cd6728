"""Training and evaluating a segmentation network on scenes, and two baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from demo.scenes import DigitScenes, batch
from vt_fast.models import MeanIoU, segmentation_loss
from vt_fast.models.metrics import Scores

_LEVELS = 8  # of each colour, for the classifier by colour


def train(
    net: nn.Module,
    scenes: DigitScenes,
    *,
    steps: int,
    batch_size: int = 8,
    learning_rate: float = 2e-3,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train in place with AdamW and a one-cycle learning rate; the last weights are used.

    Args:
        net: maps images (B, 3, H, W) to logits (B, K, H, W); trained on the device where it is.
        scenes: drawn in random order, repeatedly.
        steps: number of batches.
        batch_size: scenes per batch.
        learning_rate: the maximum of the cycle.
        seed: of the order.
        report: called after each step with its number, from 1, and its loss.

    Returns:
        The loss of each step.
    """
    device = next(net.parameters()).device
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    net.train()
    losses = []
    chosen = _order(len(scenes), batch_size, torch.Generator().manual_seed(seed))
    for step in range(1, steps + 1):
        images, labels = batch(scenes, next(chosen))
        loss = segmentation_loss(net(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if report is not None:
            report(step, losses[-1])
    return losses


def evaluate(predict: Callable[[Tensor], Tensor], scenes: DigitScenes, *, batch_size: int = 8) -> Scores:
    """Scores of a function from images (B, 3, H, W) to classes (B, H, W), on all scenes.

    For a network: ``evaluate(net.eval().predict, scenes)``.

    Args:
        predict: called with images on the CPU.
        scenes: what to evaluate on.
        batch_size: scenes per batch.
    """
    meter = MeanIoU(scenes.num_classes)
    for indices in torch.arange(len(scenes)).split(batch_size):
        images, labels = batch(scenes, indices.tolist())
        meter.update(predict(images), labels)
    return meter.compute()


def majority(images: Tensor) -> Tensor:
    """The baseline that predicts background everywhere."""
    return torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.int64)


class ColourClassifier:
    """The baseline that knows only colours: the most frequent class in a pixel's cell of 8 x 8 x 8 colours.

    Args:
        scenes: give the frequencies. Colours that do not occur there are background.
    """

    def __init__(self, scenes: DigitScenes) -> None:
        images, labels = batch(scenes, range(len(scenes)))
        pairs = _cells(images) * scenes.num_classes + labels
        counts = torch.bincount(pairs.flatten(), minlength=_LEVELS**3 * scenes.num_classes)
        self.table = counts.view(-1, scenes.num_classes).argmax(1)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> classes (B, H, W)."""
        return self.table[_cells(images)]


def _cells(images: Tensor) -> Tensor:
    """The cell (B, H, W) of each pixel's colour."""
    levels = (images * _LEVELS).long().clamp(0, _LEVELS - 1)
    return (levels[:, 0] * _LEVELS + levels[:, 1]) * _LEVELS + levels[:, 2]


def _order(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches of indices, reshuffled each time all have been used."""
    left: list[int] = []
    while True:
        while len(left) < size:
            left += torch.randperm(count, generator=generator).tolist()
        yield left[:size]
        left = left[size:]

"""Training with SGD at the paper's learning rate, without warm-up, learns from the first steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vt_fast import models

BATCH, STEPS = 32, 10


def small_backbone() -> nn.Module:
    """Images (B, 3, 32, 32) to maps (B, 256, 4, 4), as wide as a ResNet-18's."""
    first = nn.Conv2d(3, 32, 5, stride=4, padding=2, bias=False)
    second = nn.Conv2d(32, 256, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(32), nn.ReLU(), second, nn.BatchNorm2d(256), nn.ReLU())


def losses(model: nn.Module, rate: float) -> list[float]:
    """The loss of each step on real digits, with the paper's momentum and weight decay."""
    pytest.importorskip("sklearn")
    from demo.digits import load

    digits = load()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=4e-5)
    found = []
    for step in range(STEPS):
        chosen = slice(step * BATCH, (step + 1) * BATCH)
        images = F.interpolate(digits.train[chosen], size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
        loss = F.cross_entropy(model(images * 3), digits.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


V1 = {"variant": "v1", "num_tokens": 4, "width": 1024}


# The paper's rate, and the same scaled to this batch size, at which v1 needs more steps.
@pytest.mark.parametrize(("options", "rate"), [({}, 0.1), ({}, 0.025), (V1, 0.1)])
def test_sgd_at_the_papers_rate_learns_from_the_first_steps(options, rate):
    torch.manual_seed(0)
    found = losses(models.VTResNet(backbone=small_backbone(), num_classes=10, num_blocks=2, **options), rate)
    assert all(math.isfinite(loss) for loss in found), found
    # Chance is log(10) = 2.3.
    assert max(found) < 3.5, found
    assert sum(found[-3:]) / 3 < 0.75 * found[0], found

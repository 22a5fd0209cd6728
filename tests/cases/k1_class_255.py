"""PaddleSeg#1110 and the like: 255 is a class of a set with more than 255, and is left out of loss and score."""

import sys

import torch

from vt_fast.models import MeanIoU, segmentation_loss

meter = MeanIoU(300)
meter.update(torch.tensor([[255, 1]]), torch.tensor([[255, 1]]))
logits = torch.zeros(1, 300, 1, 1, requires_grad=True)
segmentation_loss(logits, torch.full((1, 1, 1), 255)).backward()
if int(meter.confusion.sum()) != 2 or not logits.grad.any():
    sys.exit(
        f"of 2 right pixels of 300 classes {int(meter.confusion.sum())} counted; gradient for class 255: {logits.grad.abs().sum():.0f}"
    )

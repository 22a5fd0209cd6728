"""Cross-entropy with ignored pixels, and the mean intersection over union."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vt_fast.models import MeanIoU, segmentation_loss


def sets(predictions, target, num_classes, ignore):
    """IoU by sets of pixels, with NumPy."""
    predictions, target = predictions.numpy(), target.numpy()
    kept = target != ignore
    found = []
    for each in range(num_classes):
        one, two = (predictions == each) & kept, (target == each) & kept
        union = (one | two).sum()
        found.append((one & two).sum() / union if union else math.nan)
    return found


@pytest.mark.parametrize("ignore", [255, 0, -1])
def test_against_sets_over_several_updates(ignore):
    predictions = torch.randint(0, 6, (5, 7, 9))
    target = torch.randint(0, 5, (5, 7, 9))  # class 5 is only predicted
    target[torch.rand(target.shape) < 0.3] = ignore
    meter = MeanIoU(8, ignore_index=ignore)
    for one, two in zip(predictions.split(2), target.split(2), strict=True):
        meter.update(one, two)
    expected = sets(predictions, target, 8, ignore)
    scores = meter.compute()
    np.testing.assert_allclose(scores.per_class.numpy(), expected)
    assert math.isnan(expected[7])
    assert expected[5] == 0
    assert scores.mean == pytest.approx(np.nanmean(expected))
    kept = target != ignore
    assert scores.accuracy == pytest.approx((predictions == target)[kept].float().mean().item())


def test_logits_and_classes_count_alike():
    logits, target = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6), dtype=torch.uint8)
    one, two = MeanIoU(4), MeanIoU(4)
    one.update(logits, target)
    two.update(logits.argmax(1), target)
    assert torch.equal(one.confusion, two.confusion)
    assert one.confusion.sum() == 60


def test_rows_are_labels_and_columns_predictions():
    meter = MeanIoU(3)
    meter.update(torch.tensor([[2, 2, 0]]), torch.tensor([[1, 1, 0]]))
    assert meter.confusion.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_reset_and_nothing_counted():
    meter = MeanIoU(3)
    meter.update(torch.tensor([[0]]), torch.tensor([[0]]))
    assert meter.compute().mean == 1
    meter.reset()
    meter.update(torch.tensor([[0]]), torch.tensor([[255]]))
    scores = meter.compute()
    assert math.isnan(scores.mean)
    assert math.isnan(scores.accuracy)
    assert torch.isnan(scores.per_class).all()


@pytest.mark.parametrize(
    ("predictions", "target", "error", "message"),
    [
        (torch.tensor([[3]]), torch.tensor([[0]]), ValueError, "`predictions` must be in 0 to 2, got 3 to 3"),
        (torch.tensor([[0]]), torch.tensor([[-1]]), ValueError, "`target` must be in 0 to 2, got -1 to -1"),
        (torch.tensor([[0]]), torch.tensor([0]), ValueError, r"`predictions` must have the shape .* \(1,\)"),
        (torch.zeros(1, 2, 1), torch.tensor([[0]]), ValueError, r"`predictions` must be \(1, 3, 1\), logits"),
        (torch.tensor([[0]]), torch.tensor([[0.0]]), TypeError, "`target` must be of integers"),
        ([0], torch.tensor([0]), TypeError, "`predictions` must be a torch.Tensor"),
    ],
)
def test_errors(predictions, target, error, message):
    meter = MeanIoU(3)
    with pytest.raises(error, match=message):
        meter.update(predictions, target)
    assert meter.confusion.sum() == 0


def _process(rank, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    meter = MeanIoU(2)
    meter.update(torch.tensor([[0, rank]]), torch.tensor([[0, 1]]))
    meter.all_reduce()
    torch.distributed.destroy_process_group()
    assert meter.confusion.tolist() == [[2, 0], [1, 1]]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, which takes a second less each")
def test_processes_add_up(tmp_path):
    torch.multiprocessing.start_processes(_process, (tmp_path / "meeting",), nprocs=2, start_method="fork")


def test_all_reduce_alone_does_nothing():
    meter = MeanIoU(2)
    meter.update(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    meter.all_reduce()
    assert meter.confusion.tolist() == [[1, 0], [0, 1]]


def test_loss_is_the_mean_over_labelled_pixels():
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (2, 5, 6))
    target[0, :3] = 255
    found, expected = segmentation_loss(logits, target), F.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(found, expected)
    for one, two in zip(
        torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_loss_without_labels_is_zero_and_so_is_its_gradient():
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 5, 6), -1), ignore_index=-1)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_255_is_a_class_where_there_are_so_many():
    logits = torch.zeros(1, 300, 1, 2, requires_grad=True)
    segmentation_loss(logits, torch.tensor([[[255, -1]]])).backward()
    assert logits.grad[..., 0].any()
    assert not logits.grad[..., 1].any()
    meter = MeanIoU(300)
    meter.update(torch.tensor([255, 7]), torch.tensor([255, -1]))
    assert meter.confusion[255, 255] == meter.confusion.sum() == 1
    assert MeanIoU(255).ignore_index == 255

"""A batch of no images through every network: empty results, and gradients of 0."""

import pytest
import torch

from tests._support import model_cases, segmentation_cases
from vt_fast import nn
from vt_fast.models import MeanIoU, segmentation_loss


def check(model, x, backend, outputs):
    """Shapes as for a full batch, and gradients of 0, in training too."""
    nn.set_backend(model, backend)
    for training in (False, True):
        model.train(training)
        full, found = outputs(model, x), outputs(model, x[:0])
        for result, empty in zip(full, found, strict=True):
            assert empty.shape == (0, *result.shape[1:])
        sum(empty.sum() for empty in found).backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        assert gradients
        assert not any(each.any() for each in gradients)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", model_cases.CASES)
def test_classifiers_and_features(name, backend):
    x = model_cases.images()
    check(model_cases.made(model_cases.CASES[name]), x, backend, model_cases.outputs)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", segmentation_cases.NETS)
def test_segmentation(name, backend):
    model = segmentation_cases.randomised(segmentation_cases.NETS[name]())
    check(model, segmentation_cases.images(), backend, lambda model, x: [model(x)])
    assert model.predict(segmentation_cases.images(batch=0)).shape == (0, 37, 29)


@pytest.mark.parametrize("name", segmentation_cases.NECKS)
def test_necks(name):
    neck = segmentation_cases.NECKS[name]().double()
    maps = segmentation_cases.levels()
    for full, empty in zip(neck(maps), neck([x[:0] for x in maps]), strict=True):
        assert empty.shape == (0, *full.shape[1:])


def test_loss_and_metric():
    logits = torch.zeros(0, 4, 5, 6, requires_grad=True)
    target = torch.zeros(0, 5, 6, dtype=torch.int64)
    loss = segmentation_loss(logits, target)
    loss.backward()
    assert loss == 0
    meter = MeanIoU(4)
    meter.update(logits, target)
    assert meter.confusion.sum() == 0

"""Scenes with a label for each pixel, and a network that learns them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("PIL")

from demo import digits, pictures
from demo.scene_net import scene_net
from demo.scenes import DigitScenes, batch
from demo.segmenting import ColourClassifier, evaluate, majority, train


def test_scenes_are_the_same_each_time_and_differ_from_one_another():
    scenes, again, other = DigitScenes(6), DigitScenes(6), DigitScenes(6, seed=1)
    for index in range(6):
        for one, two in zip(scenes[index], again[index], strict=True):
            assert torch.equal(one, two)
        assert not torch.equal(scenes[index].image, other[index].image)
    assert not torch.equal(scenes[0].image, scenes[1].image)
    assert len(list(scenes)) == 6


def test_labels_lie_where_the_photograph_was_changed():
    """Without digits the same scene is a part of a photograph; digits change it where their labels are."""
    plain = DigitScenes(8, size=(48, 80), per_scene=0)
    inked = DigitScenes(8, size=(48, 80), per_scene=1, classes=(3, 5))
    seen = set()
    for one, two in zip(plain, inked, strict=True):
        assert not one.labels.any()
        changed = (one.image - two.image).abs().amax(0) > 0
        labelled = two.labels > 0
        assert 0.01 < labelled.float().mean() < 0.5
        # A pixel of the photograph may have the digit's colour by chance.
        assert (labelled & ~changed).sum() <= 0.02 * labelled.sum()
        # Pixels with less than half ink are changed and not labelled.
        assert changed.sum() > labelled.sum()
        assert two.image.min() >= 0
        assert two.image.max() <= 1
        seen |= set(two.labels.unique().tolist())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("held_out", [False, True])
def test_backgrounds_are_the_left_or_the_right_of_the_photographs(held_out):
    """Scenes as large as the part of the photograph that they come from equal that part."""
    parts = [each.pixels[..., 448:] if held_out else each.pixels[..., :448] for each in pictures.samples()]
    size = tuple(parts[0].shape[1:])
    found = DigitScenes(6, size=size, per_scene=0, held_out=held_out)
    assert {[torch.equal(scene.image, part) for part in parts].index(True) for scene in found} == {0, 1}
    with pytest.raises(ValueError, match="`size` must be at most"):
        DigitScenes(1, size=(size[0], size[1] + 1), held_out=held_out)


@pytest.mark.parametrize("held_out", [False, True])
def test_digits_are_those_of_the_split(held_out):
    """At 8 x 8 pixels the labels are where one of the digits of the split has its ink."""
    data = digits.load()
    drawn, labels = (data.test, data.test_labels) if held_out else (data.train, data.train_labels)
    scenes = DigitScenes(60, size=(8, 8), heights=(8, 8), per_scene=1, classes=(7, 4), held_out=held_out)
    for scene in scenes:
        ink = digits.ink(drawn[labels == (7, 4)[int(scene.labels.max()) - 1]])[:, 0]
        wrong = ((ink > 0.5) != (scene.labels > 0)) & ((ink - 0.5).abs() > 1e-3)
        assert (wrong.sum((1, 2)) == 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heights": (20, 65)}, r"`heights` must be \(least, largest\) of 1 to 64, got \(20, 65\)"),
        ({"heights": (20, 10)}, "`heights` must be"),
        ({"classes": ()}, r"`classes` must be digits, got \(\)"),
        ({"classes": (10,)}, "`classes` must be digits"),
        ({"size": (64, 500)}, r"`size` must be at most \(427, 448\), got \(64, 500\)"),
    ],
)
def test_errors_of_scenes(options, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(1, **options)


def test_index_out_of_range():
    with pytest.raises(IndexError, match="scene 2 of 2"):
        DigitScenes(2)[2]


def test_baselines():
    scenes = DigitScenes(8, classes=(0, 1))
    scores, labels = evaluate(majority, scenes), batch(scenes, range(8)).labels
    share = (labels == 0).double().mean().item()
    assert scores.accuracy == pytest.approx(share)
    assert scores.mean == pytest.approx(share / 3)
    # On the scenes that it was made from, colour is better than nothing.
    assert evaluate(ColourClassifier(scenes), scenes).accuracy > share


def test_a_vt_fpn_learns_more_than_colour():
    """Held-out digits over held-out parts of the photographs; 0 and 1 differ only in shape."""
    scenes = DigitScenes(400, classes=(0, 1))
    tested = DigitScenes(48, classes=(0, 1), held_out=True)
    net = scene_net(scenes.num_classes)
    losses = train(net, scenes, steps=400, batch_size=4, learning_rate=3e-3)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    found = evaluate(net.eval().predict, tested).mean
    assert found > evaluate(majority, tested).mean + 0.2
    assert found > evaluate(ColourClassifier(scenes), tested).mean + 0.05
    for picture in pictures.samples():
        for size in ((427, 639), (101, 67)):
            classes = net.predict(picture.pixels[None, :, : size[0], : size[1]])
            assert classes.shape == (1, *size)
            assert (classes == 0).float().mean() > 0.7  # there are no digits


def test_unknown_neck():
    with pytest.raises(ValueError, match='`neck` must be "vt_fpn" or "fpn", got \'pan\''):
        scene_net(3, "pan")

"""Predictions of a segmentation network on pictures of any size."""

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def weights(libraries, tmp_path):
    from recipe import models

    torch.manual_seed(0)
    net = models.make("vt_fpn_resnet18", 4, num_tokens=2, token_channels=32)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def options(weights, folder):
    return [
        "--weights", str(weights), "--model", "vt_fpn_resnet18", "--model-option", "num_tokens=2",
        "--model-option", "token_channels=32", "--num-classes", "4", "--output", str(folder),
    ]  # fmt: skip


def test_photographs_and_pictures_of_odd_sizes(weights, tmp_path):
    import segment_pictures

    noise = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "odd.png")
    (written,) = segment_pictures.main([*options(weights, tmp_path / "one"), str(tmp_path / "odd.png")])
    drawn = np.array(Image.open(written))
    assert drawn.shape == (61, 2 * 97, 3)
    assert (drawn[:, :97] == noise).all()

    written = segment_pictures.main(options(weights, tmp_path / "photographs"))
    assert [path.name for path in written] == ["china.png", "flower.png"]
    assert all(Image.open(path).size == (2 * 640, 427) for path in written)


def test_colours_are_those_of_the_classes(libraries):
    import segment_pictures

    image = Image.new("RGB", (2, 1), (100, 100, 100))
    left, right = np.array(segment_pictures.drawn(image, torch.tensor([[0, 1]]), 3))[0, 2:]
    assert left.tolist() == [100, 100, 100]
    assert right.tolist() != left.tolist()


def test_weights_of_another_net(weights, tmp_path):
    import segment_pictures

    wrong = [word if word != "4" else "5" for word in options(weights, tmp_path)]
    with pytest.raises(SystemExit, match="do not fit"):
        segment_pictures.main(wrong)

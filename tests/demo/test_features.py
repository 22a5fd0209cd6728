"""Pixel features and the clusters made of them."""

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from demo.clusters import NUM_TOKENS, cluster
from demo.features import blur, pixel_features, rgb_to_lab
from demo.sheets import pixels_looked_at


@pytest.mark.parametrize(
    ("rgb", "lab"),
    # Published values for the sRGB primaries under D65.
    [
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_lab_of_the_primaries(rgb, lab):
    found = rgb_to_lab(torch.tensor(rgb, dtype=torch.float32).view(3, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor(lab, dtype=torch.float32), atol=0.02, rtol=0)


def test_blur_keeps_the_mean_inside_and_is_symmetric():
    point = torch.zeros(1, 1, 31, 31)
    point[0, 0, 15, 15] = 1
    blurred = blur(point, 2.0)
    torch.testing.assert_close(blurred.sum(), torch.tensor(1.0))
    torch.testing.assert_close(blurred, blurred.transpose(2, 3))
    torch.testing.assert_close(blurred, blurred.flip(2))
    assert blurred.argmax() == point.argmax()


def test_features_are_standardised_and_finite():
    features = pixel_features(torch.rand(3, 40, 60))
    assert features.shape == (1, 14, 40, 60)
    colours = features[0, :9]
    torch.testing.assert_close(colours.mean((1, 2)), torch.zeros(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(colours.square().mean((1, 2)), torch.ones(9), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2), (40, 60)])
@pytest.mark.parametrize("flat", [True, False])
def test_any_picture_has_clusters(size, flat):
    pixels = torch.full((3, *size), 0.5) if flat else torch.rand(3, *size)
    clusters = cluster(pixels)
    assert torch.isfinite(clusters.attention).all()
    torch.testing.assert_close(clusters.attention.sum((1, 2)), torch.ones(NUM_TOKENS), atol=1e-3, rtol=0)
    assert clusters.segments.shape == size
    counts = torch.bincount(clusters.segments.flatten(), minlength=NUM_TOKENS)
    assert (counts.diff() <= 0).all()


def test_two_halves_become_segments_that_respect_the_border():
    pixels = torch.zeros(3, 40, 40)
    pixels[0, :, :20] = 1
    pixels[2, :, 20:] = 1
    clusters = cluster(pixels)
    left, right = (
        set(clusters.segments[:, :18].flatten().tolist()),
        set(clusters.segments[:, 22:].flatten().tolist()),
    )
    assert not left & right
    reds = {token for token in range(NUM_TOKENS) if clusters.colours[token, 0] > 0.5}
    assert left <= reds
    assert not right & reds


def test_pixels_looked_at_counts_pixels():
    attention = torch.zeros(1, 2, 4, 4)
    attention[0, 0, 0, 0] = 1
    attention[0, 1, :, 0] = 0.25
    assert pixels_looked_at(attention) == pytest.approx((1 + 4) / 2)

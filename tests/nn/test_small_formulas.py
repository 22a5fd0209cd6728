"""The formulas that modules and reference both write out: k-means and the resize."""

from __future__ import annotations

import pytest
import torch

from vt_fast import reference
from vt_fast.nn.clustering import initial_centroids, kmeans
from vt_fast.nn.position import resize_matrix

# Pixels and first centroids of one sample: what the paper's listing leaves open.
CORNER_CASES = {
    "a tie": ([[1, 1], [1, 1], [3, 0]], [[1, 0], [0, 1]]),
    "a cluster without pixels": ([[1, 0], [2, 0.1]], [[1, 0], [0, -1]]),
    "pixels that cancel": ([[1, 0], [-1, 0], [0, 1]], [[0.1, -1], [0, 2]]),
    "a mean with one zero": ([[0, 2], [0, 3], [3, 0]], [[1, 2], [2, 1]]),
    "pixels of zeros": ([[0, 0], [0, 0], [0, 5]], [[1, 1], [-1, 0]]),
    "a centroid of zeros": ([[1, 0], [0, -1]], [[0, 0], [1, 1]]),
    "very short vectors": ([[1e-30, 0], [0, 1e-30]], [[1e-30, 2e-30], [2e-30, 1e-30]]),
}


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("name", CORNER_CASES)
def test_kmeans_in_corner_cases(name, iterations):
    pixels, centroids = (torch.tensor([rows], dtype=torch.float64) for rows in CORNER_CASES[name])
    expected = reference.clustering.kmeans(pixels, centroids, iterations=iterations)
    torch.testing.assert_close(kmeans(pixels, centroids, iterations), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_kmeans_of_narrow_maps_runs_in_float32(dtype, autocast):
    generator = torch.Generator().manual_seed(0)
    pixels, centroids = torch.randn(2, 50, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)
    pixels, centroids = pixels.to(dtype).requires_grad_(), centroids.to(dtype)
    expected = kmeans(pixels.float(), centroids.float(), 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = kmeans(pixels, centroids, 4)
    assert not found.requires_grad
    assert torch.equal(found, expected)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 7, 16])
def test_initial_centroids(num_tokens):
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    expected = reference.clustering.initial_centroids(x, num_tokens)
    torch.testing.assert_close(initial_centroids(x, num_tokens), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("target", [1, 2, 5, 14])
@pytest.mark.parametrize("source", [1, 2, 7, 14, 31])
def test_resize_matrix(source, target):
    expected = reference.position.resize_matrix(source, target, torch.float64)
    found = resize_matrix(source, target, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    pixels = torch.randn(3, 1, source, dtype=torch.float64)
    resized = torch.nn.functional.interpolate(pixels, size=target, mode="linear", align_corners=False)
    torch.testing.assert_close(pixels @ found.mT, resized, rtol=0, atol=1e-14)

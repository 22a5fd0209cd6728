"""k-means where the paper's listing breaks, and against a loop that measures distances."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from vt_fast.reference.clustering import DEFAULT_ITERATIONS, clustering_tokenizer, initial_centroids, kmeans
from vt_fast.reference.tokenizers import filter_tokenizer

HALF = math.sqrt(0.5)


def rows(*values):
    return torch.tensor([values], dtype=torch.float64)


def loop_kmeans(x, centroids, iterations):
    """The paper's words: unit vectors, the smallest Euclidean distance, the mean, unit length again."""
    results = []
    for pixels, units in zip(x, centroids, strict=True):
        pixels = [pixel / pixel.norm() for pixel in pixels]
        units = [unit / unit.norm() for unit in units]
        for _ in range(iterations):
            clusters = [[] for _ in units]
            for pixel in pixels:
                distances = [(pixel - unit).norm().item() for unit in units]
                clusters[distances.index(min(distances))].append(pixel)
            means = [torch.stack(cluster).mean(dim=0) if cluster else None for cluster in clusters]
            units = [
                unit if mean is None else mean / mean.norm() for unit, mean in zip(units, means, strict=True)
            ]
        results.append(torch.stack(units))
    return torch.stack(results)


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_against_a_loop(make, close, iterations):
    x, centroids = make.tensor(3, 20, 4), make.tensor(3, 5, 4)
    close(kmeans(x, centroids, iterations=iterations), loop_kmeans(x, centroids, iterations))


def test_tied_pixel_counts_once_for_the_lowest_index(close):
    x = rows([2.0, 0.0], [0.0, 2.0], [1.0, 1.0])
    moved = kmeans(x, rows([1.0, 0.0], [0.0, 1.0]), iterations=1)
    first = torch.tensor([1 + HALF, HALF], dtype=torch.float64)
    close(moved, torch.stack((first / first.norm(), torch.tensor([0.0, 1.0]).double())).unsqueeze(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_changes_nothing(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 500, 24, generator=generator).to(dtype)
    centroids = torch.randn(2, 8, 24, generator=generator).to(dtype)
    expected = kmeans(x, centroids, iterations=5)
    with torch.autocast("cpu", torch.bfloat16):
        found = kmeans(x, centroids, iterations=5)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def test_a_device_without_autocast():
    x, centroids = torch.empty(2, 9, 4, device="meta"), torch.empty(2, 3, 4, device="meta")
    assert kmeans(x, centroids, iterations=1).shape == (2, 3, 4)


def test_equal_centroids_do_not_share_pixels(close):
    x = rows([1.0, 0.0], [0.0, 1.0])
    close(kmeans(x, rows([3.0, 3.0], [1.0, 1.0]), iterations=3), [[[HALF, HALF], [HALF, HALF]]])


def test_empty_cluster_keeps_its_centroid(close):
    x = rows([1.0, 0.1], [1.0, -0.1])
    close(kmeans(x, rows([1.0, 0.5], [-3.0, -4.0]), iterations=5), [[[1.0, 0.0], [-0.6, -0.8]]])


def test_cluster_whose_pixels_cancel_keeps_its_centroid(close):
    x = rows([1.0, 0.0], [-1.0, 0.0])
    close(kmeans(x, rows([0.0, 5.0]), iterations=3), [[[0.0, 1.0]]])


def test_zero_pixels_pull_in_no_direction(make, close):
    x, centroids = make.tensor(2, 20, 4), make.tensor(2, 3, 4)
    padded = torch.cat((torch.zeros_like(x[:, :7]), x), dim=1)
    close(kmeans(padded, centroids, iterations=4), kmeans(x, centroids, iterations=4))


def test_zero_map_stays_finite(close):
    tokens = clustering_tokenizer(torch.zeros(1, 3, 4, 4, dtype=torch.float64), 4)
    close(tokens, torch.zeros(1, 4, 3))


@pytest.mark.parametrize(
    ("num_tokens", "grid"), [(1, (1, 1)), (2, (1, 2)), (5, (2, 3)), (8, (2, 4)), (16, (4, 4))]
)
def test_initial_centroids_are_the_first_cells_of_a_grid(make, close, num_tokens, grid):
    feature_map = make.tensor(2, 3, 2 * grid[0], 3 * grid[1])
    cells = feature_map.unfold(2, 2, 2).unfold(3, 3, 3).mean(dim=(4, 5))  # (B, C, h, w)
    expected = cells.permute(0, 2, 3, 1).reshape(2, -1, 3)[:, :num_tokens]
    close(initial_centroids(feature_map, num_tokens), expected)


def test_more_tokens_than_pixels(make):
    tokens = clustering_tokenizer(make.tensor(2, 3, 2, 2), 7)
    assert tokens.shape == (2, 7, 3)
    assert tokens.isfinite().all()


def test_separated_clusters_are_recovered(make, close):
    # Four quadrants around four orthogonal directions; the noise is far below the distance between them.
    directions = torch.eye(4, dtype=torch.float64)
    labels = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    x = directions[labels] * 3 + 0.1 * make.tensor(8, 8, 4)
    feature_map = x.permute(2, 0, 1).unsqueeze(0)
    pixels = x.reshape(1, 64, 4)
    found = kmeans(pixels, initial_centroids(feature_map, 4), iterations=DEFAULT_ITERATIONS)
    units = pixels[0] / pixels[0].norm(dim=1, keepdim=True)
    sums = torch.stack([units[labels.flatten() == label].sum(dim=0) for label in range(4)])
    close(found, (sums / sums.norm(dim=1, keepdim=True)).unsqueeze(0))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), pixels=st.integers(1, 12), num_tokens=st.integers(1, 5))
def test_unit_length_and_closer_with_every_iteration(maker, close, seed, pixels, num_tokens):
    make = maker(seed)
    x, centroids = make.tensor(2, pixels, 3), make.tensor(2, num_tokens, 3)
    units = x / x.norm(dim=2, keepdim=True)
    fits = []
    for iterations in range(4):
        found = kmeans(x, centroids, iterations=iterations)
        close(found.norm(dim=2), torch.ones(2, num_tokens))
        fits.append((units @ found.transpose(1, 2)).amax(dim=2).sum(dim=1))
    gains = torch.stack(fits).diff(dim=0)
    assert (gains >= -1e-10).all()


def test_batch_length_and_order_of_pixels_do_not_matter(make, close):
    x, centroids = make.tensor(3, 20, 4), make.tensor(3, 5, 4)
    found = kmeans(x, centroids, iterations=4)
    alone = [kmeans(x[b : b + 1], centroids[b : b + 1], iterations=4) for b in range(3)]
    close(found, torch.cat(alone))
    lengths = make.tensor(3, 20, 1).exp()
    close(kmeans(x * lengths, centroids * 7, iterations=4), found)
    close(kmeans(x * 1e-20, centroids * 1e-20, iterations=4), found)
    close(kmeans(x[:, make.permutation(20)], centroids, iterations=4), found)


def test_tokens_are_pooled_from_raw_pixels_without_gradient_through_the_centroids(make, close):
    feature_map = make.tensor(2, 4, 6, 6).requires_grad_()
    value, token, upstream = make.projection(4, 6), make.projection(6, 5), make.tensor(2, 7, 5)
    x = feature_map.flatten(2).transpose(1, 2)
    filters = kmeans(x, initial_centroids(feature_map, 7), iterations=3)
    assert not filters.requires_grad
    expected = filter_tokenizer(x, filters, scale=2.0, value=value, token=token)
    tokens = clustering_tokenizer(feature_map, 7, iterations=3, scale=2.0, value=value, token=token)
    close(tokens, expected)
    gradients = [torch.autograd.grad((t * upstream).sum(), feature_map)[0] for t in (tokens, expected)]
    close(*gradients)


def test_default_is_ten_iterations(make, close):
    feature_map = make.tensor(1, 8, 12, 12)
    assert DEFAULT_ITERATIONS == 10
    tokens = clustering_tokenizer(feature_map, 9)
    close(tokens, clustering_tokenizer(feature_map, 9, iterations=10))
    assert not torch.equal(tokens, clustering_tokenizer(feature_map, 9, iterations=1))


@pytest.mark.parametrize("length", [1e-4, 1.0, 1e4])
def test_float16_counts_and_lengths_do_not_overflow(length):
    # 70,000 pixels in one cluster: neither the count nor the sum is a float16 number.
    x = torch.tensor([length, 0.0], dtype=torch.float16).expand(1, 70_000, 2)
    found = kmeans(x, torch.tensor([[[1.0, 1.0]]], dtype=torch.float16), iterations=2)
    assert found.dtype == torch.float16
    assert found.tolist() == [[[1.0, 0.0]]]

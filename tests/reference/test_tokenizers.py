"""Equations 1 and 2 against loops, hand-computed values and what must hold for any weights."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vt_fast.reference.linear import Projection, linear
from vt_fast.reference.position import resize_matrix
from vt_fast.reference.tokenizers import (
    filter_tokenizer,
    gather,
    pooling_tokenizer,
    recurrent_tokenizer,
    spatial_attention,
    token_filters,
)

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 6)


def loop_tokens(x, filters, scale=1.0):
    """Equation 1, number by number, in Python's own arithmetic."""
    batch, pixels, channels = x.shape
    banks = filters if filters.dim() == 3 else filters.expand(batch, *filters.shape)
    tokens = torch.zeros(batch, banks.shape[1], channels, dtype=torch.float64)
    for b in range(batch):
        for t in range(banks.shape[1]):
            logits = [
                scale * sum(x[b, n, c].item() * banks[b, t, c].item() for c in range(channels))
                for n in range(pixels)
            ]
            total = math.fsum(math.exp(logit) for logit in logits)
            for c in range(channels):
                tokens[b, t, c] = math.fsum(
                    math.exp(logit) / total * x[b, n, c].item() for n, logit in enumerate(logits)
                )
    return tokens


def test_hand_computed_token(close):
    x = torch.tensor([[[0.0, 4.0], [1.0, 8.0]]], dtype=torch.float64)
    filters = torch.tensor([[math.log(3), 0.0], [-math.log(3), 0.0]], dtype=torch.float64)
    close(spatial_attention(x, filters), [[[0.25, 0.75], [0.75, 0.25]]])
    close(filter_tokenizer(x, filters), [[[0.75, 7.0], [0.25, 5.0]]])


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_equation_1_against_a_loop(make, close, shape):
    x, filters = make.tensor(2, 5, 4), make.tensor(*shape)
    close(filter_tokenizer(x, filters), loop_tokens(x, filters))
    close(filter_tokenizer(x, filters, scale=0.3), loop_tokens(x, filters, 0.3))


def test_equation_2_against_a_loop(make, close):
    x, tokens = make.tensor(2, 5, 4), make.tensor(2, 3, 6)
    query = make.projection(6, 4, bias=False)
    filters = torch.einsum("blt,ct->blc", tokens, query.weight)
    close(token_filters(tokens, query), filters)
    close(recurrent_tokenizer(x, tokens, query), loop_tokens(x, filters))


def test_key_projection_folds_into_the_filters(make, close):
    x, tokens = make.tensor(2, 5, 4), make.tensor(2, 3, 6)
    query, key = make.projection(6, 8), make.projection(4, 8, groups=2)
    dense = torch.block_diag(*key.weight.chunk(2))
    folded = (
        token_filters(tokens, query) @ dense
    )  # the key's bias is a constant per token: the softmax drops it
    close(recurrent_tokenizer(x, tokens, query, key=key), filter_tokenizer(x, folded))


def test_value_projection_leaves_the_pixels(make, close):
    x, filters, value = make.tensor(2, 5, 4), make.tensor(3, 4), make.projection(4, 6, groups=2)
    on_tokens = linear(filter_tokenizer(x, filters), value)
    close(filter_tokenizer(x, filters, value=value), on_tokens)


def test_position_is_appended_before_the_token_projection(make, close):
    x, attention, extra_values = make.tensor(2, 5, 4), make.tensor(2, 5, 3), make.tensor(5, 2)
    pooled = torch.cat(
        (torch.einsum("bnl,bnc->blc", attention, x), torch.einsum("bnl,np->blp", attention, extra_values)),
        dim=2,
    )
    close(gather(attention, x, extra_values=extra_values), pooled)
    token = make.projection(6, 7)
    close(gather(attention, x, extra_values=extra_values, token=token), pooled @ token.weight.T + token.bias)


@settings(deadline=None, max_examples=50)
@given(seed=seeds, batch=sizes, pixels=sizes, num_tokens=sizes, channels=sizes, scale=st.floats(-3, 3))
def test_weights_are_a_distribution_over_the_pixels(
    maker, close, seed, batch, pixels, num_tokens, channels, scale
):
    make = maker(seed)
    x, filters = make.tensor(batch, pixels, channels), make.tensor(num_tokens, channels)
    attention = spatial_attention(x, filters, scale=scale)
    assert attention.shape == (batch, pixels, num_tokens)
    assert (attention >= 0).all()
    close(attention.sum(dim=1), torch.ones(batch, num_tokens))


@settings(deadline=None, max_examples=50)
@given(seed=seeds, pixels=sizes, num_tokens=sizes, channels=sizes)
def test_constant_map_gives_that_constant(maker, close, seed, pixels, num_tokens, channels):
    make = maker(seed)
    pixel = make.tensor(2, 1, channels)
    tokens = filter_tokenizer(pixel.expand(2, pixels, channels), make.tensor(num_tokens, channels))
    close(tokens, pixel.expand(2, num_tokens, channels))


@settings(deadline=None, max_examples=50)
@given(seed=seeds, pixels=sizes)
def test_pixel_order_does_not_matter(maker, close, seed, pixels):
    make = maker(seed)
    x, filters, extra_values = make.tensor(2, pixels, 3), make.tensor(4, 3), make.tensor(pixels, 2)
    order = make.permutation(pixels)
    tokens = filter_tokenizer(x, filters, extra_values=extra_values)
    close(filter_tokenizer(x[:, order], filters, extra_values=extra_values[order]), tokens)


@settings(deadline=None, max_examples=50)
@given(seed=seeds, pixels=sizes, num_tokens=sizes)
def test_filter_bias_cancels(maker, close, seed, pixels, num_tokens):
    make = maker(seed)
    x, filters, bias = make.tensor(2, pixels, 3), make.tensor(num_tokens, 3), make.tensor(num_tokens, 1)
    # A channel that is 1 everywhere turns its filter weight into a bias.
    with_bias = spatial_attention(
        torch.cat((x, torch.ones_like(x[..., :1])), dim=2), torch.cat((filters, bias), dim=1)
    )
    close(with_bias, spatial_attention(x, filters))


def test_large_logits_pick_one_pixel(make, close):
    x, filters = make.tensor(2, 5, 4), make.tensor(3, 4)
    best = (x @ filters.T).argmax(dim=1)
    close(filter_tokenizer(x, filters, scale=1e6), torch.stack([x[b, best[b]] for b in range(2)]))


def test_pooling_hand_computed(close):
    feature_map = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
    close(pooling_tokenizer(feature_map, (2, 2)), [[[2.5], [4.5], [10.5], [12.5]]])


@pytest.mark.parametrize("grid", [(2, 3), (7, 5), (9, 11), (1, 1)])
def test_pooling_against_interpolate_and_the_resize_matrices(make, close, grid):
    feature_map, value, token = (
        make.tensor(2, 4, 7, 5),
        make.projection(4, 6, groups=2),
        make.projection(6, 3),
    )
    plain = pooling_tokenizer(feature_map, grid)
    resized = F.interpolate(feature_map, size=grid, mode="bilinear", align_corners=False, antialias=False)
    close(plain, resized.permute(0, 2, 3, 1).reshape(2, -1, 4))
    rows = resize_matrix(7, grid[0], dtype=torch.float64)
    columns = resize_matrix(5, grid[1], dtype=torch.float64)
    close(plain, torch.einsum("hy,bcyx,wx->bhwc", rows, feature_map, columns).reshape(2, -1, 4))
    # Its weights sum to 1, so the order of projection and resize does not matter.
    close(pooling_tokenizer(feature_map, grid, value=value, token=token), linear(linear(plain, value), token))


def test_identity_projections_change_nothing(make, close):
    x, filters, tokens = make.tensor(2, 5, 4), make.tensor(3, 4), make.tensor(2, 3, 4)
    one = Projection(torch.eye(4, dtype=torch.float64))
    close(filter_tokenizer(x, filters, value=one, token=one), filter_tokenizer(x, filters))
    close(recurrent_tokenizer(x, tokens, one, key=one, value=one, token=one), filter_tokenizer(x, tokens))

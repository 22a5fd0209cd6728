"""Equation 5 against loops, hand-computed values and the fold onto the tokens."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from vt_fast.reference.linear import Projection, linear
from vt_fast.reference.projector import pixel_attention, projector

sizes = st.integers(1, 6)


def test_hand_computed(close):
    x = torch.tensor([[[0.0, 5.0], [math.log(3), 7.0]]], dtype=torch.float64)
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    close(pixel_attention(x, tokens, None, None), [[[[0.5, 0.5], [0.75, 0.25]]]])
    close(projector(x, tokens, None, None, None), [[[0.5, 5.0], [math.log(3) + 0.75, 7.0]]])


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_equation_5_against_a_loop_over_heads(make, close, num_heads, biased):
    x, tokens = make.tensor(2, 5, 8), make.tensor(2, 3, 6)
    query, key = make.projection(8, 4, groups=2, bias=biased), make.projection(6, 4, bias=biased)
    value = make.projection(6, 8, groups=2, bias=biased)
    queries, keys, values = linear(x, query), linear(tokens, key), linear(tokens, value)
    expected = x.clone()
    for b in range(2):
        for h in range(num_heads):
            block = slice(h * 4 // num_heads, (h + 1) * 4 // num_heads)
            out = slice(h * 8 // num_heads, (h + 1) * 8 // num_heads)
            for n in range(5):
                weights = [
                    math.exp(0.7 * (queries[b, n, block] @ keys[b, t, block]).item()) for t in range(3)
                ]
                for t in range(3):
                    expected[b, n, out] += weights[t] / sum(weights) * values[b, t, out]
    close(projector(x, tokens, query, key, value, num_heads=num_heads, scale=0.7), expected)


def test_equation_5_as_printed(make, close):
    x, tokens = make.tensor(2, 5, 4), make.tensor(2, 3, 4)
    query, key = make.projection(4, 6, bias=False), make.projection(4, 6, bias=False)
    logits = torch.einsum("bnc,wc,wt,blt->bnl", x, query.weight, key.weight, tokens)
    weights = logits.exp() / logits.exp().sum(dim=2, keepdim=True)
    close(projector(x, tokens, query, key, None), x + torch.einsum("bnl,blc->bnc", weights, tokens))


def test_shortcut_changes_the_width(make, close):
    x, tokens = make.tensor(2, 5, 4), make.tensor(2, 3, 6)
    query, key, shortcut = make.projection(4, 6), make.projection(6, 6), make.projection(4, 6)
    mixed = pixel_attention(x, tokens, query, key)[:, 0] @ tokens
    out = projector(x, tokens, query, key, None, shortcut=shortcut)
    close(out, mixed + x @ shortcut.weight.T + shortcut.bias)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), pixels=sizes, num_tokens=sizes, num_heads=st.sampled_from([1, 2]))
def test_weights_are_a_distribution_over_the_tokens(maker, close, seed, pixels, num_tokens, num_heads):
    make = maker(seed)
    x, tokens = make.tensor(2, pixels, 4), make.tensor(2, num_tokens, 4)
    weights = pixel_attention(x, tokens, None, None, num_heads=num_heads)
    assert weights.shape == (2, num_heads, pixels, num_tokens)
    assert (weights >= 0).all()
    close(weights.sum(dim=3), torch.ones(2, num_heads, pixels))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), num_tokens=sizes)
def test_equal_tokens_add_themselves_and_their_order_does_not_matter(maker, close, seed, num_tokens):
    make = maker(seed)
    x, token = make.tensor(2, 5, 4), make.tensor(2, 1, 4)
    query, key = make.projection(4, 4), make.projection(4, 4)
    close(projector(x, token.expand(2, num_tokens, 4), query, key, None), x + token)
    tokens = make.tensor(2, num_tokens, 4)
    shuffled = projector(x, tokens[:, make.permutation(num_tokens)], query, key, None, num_heads=2)
    close(shuffled, projector(x, tokens, query, key, None, num_heads=2))


@pytest.mark.parametrize("num_heads", [1, 2])
def test_query_projection_folds_into_keys_and_a_bias(make, close, num_heads):
    x, tokens = make.tensor(2, 5, 4), make.tensor(2, 3, 6)
    query, key = make.projection(4, 8), make.projection(6, 8)
    weights = pixel_attention(x, tokens, query, key, num_heads=num_heads, scale=0.5)
    for h in range(num_heads):
        block = slice(h * 8 // num_heads, (h + 1) * 8 // num_heads)
        rows = 0.5 * linear(tokens, key)[..., block]
        logits = x @ (rows @ query.weight[block]).transpose(1, 2) + (rows @ query.bias[block]).unsqueeze(1)
        close(weights[:, h], logits.softmax(dim=2))


def test_identity_projections_change_nothing(make, close):
    x, tokens = make.tensor(2, 5, 4), make.tensor(2, 3, 4)
    one = Projection(torch.eye(4, dtype=torch.float64))
    close(projector(x, tokens, one, one, one, shortcut=one), projector(x, tokens, None, None, None))

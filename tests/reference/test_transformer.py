"""Equations 3 and 4 and the ablation's relations against loops."""

from __future__ import annotations

import math

import pytest
import torch

from vt_fast.reference.linear import Projection, linear
from vt_fast.reference.transformer import (
    graph_convolution,
    no_relation,
    scaled_attention,
    token_attention,
    transformer,
    transformer_v1,
)


def loop_attention(tokens, key, query, values, num_heads=1, scale=1.0):
    """T' of equation 3 with rows on the keys' side, one head and one pair of tokens at a time."""
    keys, queries = linear(tokens, key), linear(tokens, query)
    batch, length, width = keys.shape
    mixed = torch.zeros_like(tokens)
    for b in range(batch):
        for h in range(num_heads):
            block = slice(h * width // num_heads, (h + 1) * width // num_heads)
            out = slice(h * values.shape[2] // num_heads, (h + 1) * values.shape[2] // num_heads)
            for i in range(length):
                weights = [
                    math.exp(scale * (keys[b, i, block] @ queries[b, j, block]).item()) for j in range(length)
                ]
                for j in range(length):
                    mixed[b, i, out] += weights[j] / sum(weights) * values[b, j, out]
    return tokens + mixed


def test_rows_are_the_keys_side(close):
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    key = Projection(torch.tensor([[math.log(3), 0.0]], dtype=torch.float64))
    query = Projection(torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    # (T K)(T Q)^T = [[0, log 3], [0, 0]]; with the queries as rows it would be the transpose.
    close(token_attention(tokens, key, query), [[[[0.25, 0.75], [0.5, 0.5]]]])


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_weights_sum_to_one_over_the_second_token(make, close, num_heads):
    weights = token_attention(
        make.tensor(2, 5, 6), make.projection(6, 4), make.projection(6, 4), num_heads=num_heads
    )
    assert weights.shape == (2, num_heads, 5, 5)
    assert (weights >= 0).all()
    close(weights.sum(dim=3), torch.ones(2, num_heads, 5))


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("with_value", [True, False])
def test_equations_3_and_4_against_a_loop(make, close, num_heads, with_value):
    tokens = make.tensor(2, 5, 6)
    key, query = make.projection(6, 4, groups=2), make.projection(6, 4)
    first, second = make.projection(6, 8, groups=2), make.projection(8, 6)
    value = make.projection(6, 6, groups=3) if with_value else None
    values = tokens if value is None else linear(tokens, value)
    middle = loop_attention(tokens, key, query, values, num_heads, 0.7)
    hidden = torch.einsum("blt,ht->blh", middle, torch.block_diag(*first.weight.chunk(2))) + first.bias
    expected = middle + torch.einsum("blh,th->blt", hidden.clamp(min=0), second.weight) + second.bias
    close(
        transformer(tokens, key, query, first, second, value=value, num_heads=num_heads, scale=0.7), expected
    )


@pytest.mark.parametrize("num_heads", [1, 2])
def test_scaled_attention_against_a_loop(make, close, num_heads):
    tokens, gain = make.tensor(2, 5, 6), make.tensor(6)
    key, query, value = (make.projection(6, out) for out in (4, 4, 6))
    change = loop_attention(tokens, key, query, linear(tokens, value), num_heads) - tokens
    found = scaled_attention(tokens, key, query, value, gain, num_heads=num_heads)
    close(found, tokens + torch.einsum("blc,c->blc", change, gain))


@pytest.mark.parametrize("num_heads", [1, 2])
def test_first_version_against_a_loop(make, close, num_heads):
    tokens = make.tensor(2, 5, 6)
    key, query, value, layer = (make.projection(6, out) for out in (4, 4, 6, 6))
    middle = loop_attention(tokens, key, query, linear(tokens, value), num_heads)
    expected = middle + middle @ layer.weight.T + layer.bias
    close(transformer_v1(tokens, key, query, value, layer, num_heads=num_heads), expected)


def test_equivariant_to_the_order_of_tokens(make, close):
    tokens, order = make.tensor(2, 5, 6), make.permutation(5)
    weights = [make.projection(6, 6) for _ in range(4)]
    close(transformer(tokens[:, order], *weights), transformer(tokens, *weights)[:, order])
    close(transformer_v1(tokens[:, order], *weights), transformer_v1(tokens, *weights)[:, order])


def test_zero_branches_leave_the_tokens_alone(make, close):
    tokens = make.tensor(2, 5, 6)
    key, query, first = (make.projection(6, 6) for _ in range(3))
    zero = Projection(torch.zeros(6, 6, dtype=torch.float64))
    close(transformer(tokens, key, query, first, zero, value=zero), tokens)
    close(transformer_v1(tokens, key, query, zero, zero), tokens)
    close(no_relation(tokens, zero), tokens)
    close(graph_convolution(tokens, torch.zeros(5, 5, dtype=torch.float64), zero), tokens)


def test_relation_none_hand_computed(close):
    tokens = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])
    weight = Projection(torch.tensor([[1.0, -1.0], [0.0, 2.0]]), torch.tensor([0.5, 0.0]))
    # T F = [[-0.5, 4], [4.5, -2]]
    close(no_relation(tokens, weight), [[[1.0, 6.0], [7.5, -1.0]]])


def test_graph_convolution_hand_computed(close):
    tokens = torch.tensor([[[1.0], [10.0]]])
    mix = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])  # T' = [1 + 20, 10 - 1]
    close(graph_convolution(tokens, mix, Projection(torch.tensor([[-1.0]]))), [[[21.0], [9.0]]])
    close(graph_convolution(tokens, mix, Projection(torch.tensor([[1.0]]))), [[[42.0], [18.0]]])

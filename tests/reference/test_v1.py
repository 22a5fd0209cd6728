"""The first version's tokenizers against einsum and per-head loops."""

from __future__ import annotations

import math

import pytest
import torch

from vt_fast.reference.linear import linear
from vt_fast.reference.position import linear_position_code, resize_matrix
from vt_fast.reference.tokenizers import spatial_attention
from vt_fast.reference.v1 import dynamic_attention, dynamic_tokenizer, static_tokenizer


def test_static_tokenizer_against_einsum(make, close):
    x, filters, extra_values = make.tensor(2, 5, 4), make.tensor(3, 4), make.tensor(5, 2)
    value, token = make.projection(4, 6, groups=2), make.projection(8, 7)
    weights = (torch.einsum("bnc,lc->bln", x, filters) / 2).exp()  # sqrt(C) = 2
    weights = weights / weights.sum(dim=2, keepdim=True)
    values = x @ torch.block_diag(*value.weight.chunk(2)).T + value.bias
    pooled = torch.cat((weights @ values, weights @ extra_values), dim=2)
    tokens = static_tokenizer(x, filters, value=value, extra_values=extra_values, token=token)
    close(tokens, pooled @ token.weight.T + token.bias)


def test_static_tokenizer_takes_the_paper_position_code_as_a_table(make, close):
    x, filters, weight, token = (
        make.tensor(2, 15, 4),
        make.tensor(3, 4),
        make.tensor(4, 6),
        make.projection(10, 7),
    )
    attention = spatial_attention(x, filters, scale=0.5)
    code = linear_position_code(attention, (3, 5), 2, weight)
    plain = linear(torch.cat((attention.transpose(1, 2) @ x, code), dim=2), token)
    rows, columns = (resize_matrix(length, 2, dtype=torch.float64) for length in (3, 5))
    table = torch.kron(rows, columns).T @ weight
    close(static_tokenizer(x, filters, value=None, extra_values=table, token=token), plain)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("with_value", [True, False])
def test_dynamic_tokenizer_against_a_loop_over_heads(make, close, num_heads, with_value):
    x, tokens = make.tensor(2, 9, 8), make.tensor(2, 6, 10)
    query, key = make.projection(10, 8, groups=2), make.projection(8, 8, groups=4)
    value = make.projection(8, 12, groups=4) if with_value else None
    token = make.projection(12 if with_value else 8, 10)
    queries, keys = linear(tokens[:, :3], query), linear(x, key)
    values = x if value is None else linear(x, value)
    new = torch.empty(2, 3, values.shape[2], dtype=torch.float64)
    for b in range(2):
        for h in range(num_heads):
            block = slice(h * 8 // num_heads, (h + 1) * 8 // num_heads)
            for i in range(3):
                logits = [
                    (keys[b, n, block] @ queries[b, i, block]).item() / math.sqrt(8 / num_heads)
                    for n in range(9)
                ]
                weights = torch.tensor([math.exp(logit) for logit in logits], dtype=torch.float64)
                out = slice(h * values.shape[2] // num_heads, (h + 1) * values.shape[2] // num_heads)
                new[b, i, out] = weights / weights.sum() @ values[b, :, out]
    result = dynamic_tokenizer(x, tokens, query, key, num_heads=num_heads, value=value, token=token)
    assert torch.equal(result[:, :3], tokens[:, 3:])
    close(result[:, 3:], new @ token.weight.T + token.bias)


def test_dynamic_tokenizer_has_sixteen_heads_by_default(make, close):
    x, tokens = make.tensor(1, 5, 32), make.tensor(1, 4, 32)
    query, key = make.projection(32, 32), make.projection(32, 32)
    close(dynamic_tokenizer(x, tokens, query, key), dynamic_tokenizer(x, tokens, query, key, num_heads=16))
    different = dynamic_tokenizer(x, tokens, query, key, num_heads=8)
    assert (dynamic_tokenizer(x, tokens, query, key) - different).abs().max() > 1e-3


def test_dynamic_tokenizer_appends_the_code_of_the_heads_mean_attention(make, close):
    x, tokens, weight = make.tensor(2, 15, 8), make.tensor(2, 6, 10), make.tensor(4, 6)
    query, key, token = make.projection(10, 8), make.projection(8, 8), make.projection(14, 10)
    attention = dynamic_attention(x, tokens, query, key, num_heads=2)
    one, two = attention[:, 0], attention[:, 1]
    pooled = torch.cat([part.transpose(1, 2) @ x[..., at : at + 4] for part, at in ((one, 0), (two, 4))], 2)
    code = linear_position_code((one + two) / 2, (3, 5), 2, weight)
    found = dynamic_tokenizer(
        x,
        tokens,
        query,
        key,
        num_heads=2,
        position=lambda attention: linear_position_code(attention, (3, 5), 2, weight),
        token=token,
    )
    close(found[:, 3:], linear(torch.cat((pooled, code), 2), token))

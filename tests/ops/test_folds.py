"""The folds that turn the paper's tokenizers into one op, each against the paper, in float64.

One side is vt_fast.reference on the unfolded parameters. The other folds them here, by hand, and calls
vt_fast.functional. Results and the gradients of every unfolded parameter must agree.
"""

import pytest
import torch
from torch.nn import functional as F

from tests._support.comparing import assert_close, assert_same, evaluate
from tests._support.folding import CT, B, C, H, L, N, W, as_map, back, pixels_and_tokens, randn, weight
from vt_fast.functional import merge, tokenize
from vt_fast.reference.clustering import clustering_tokenizer, initial_centroids, kmeans
from vt_fast.reference.linear import Projection, linear
from vt_fast.reference.position import conv_position_code, linear_position_code, resize_matrix
from vt_fast.reference.tokenizers import filter_tokenizer, gather, recurrent_tokenizer, spatial_attention
from vt_fast.reference.v1 import dynamic_tokenizer, static_tokenizer

pytestmark = [pytest.mark.on_cpu, pytest.mark.one_backend]


def test_back_is_the_transpose_of_the_convolution():
    w, rows, x = weight(6, 12, groups=3), randn(4, 6), randn(4, 12)
    dense = torch.block_diag(*w.chunk(3))
    assert_close(back(rows, w, 3), rows @ dense)
    assert_close(linear(x, Projection(w, None, 3)), x @ dense.T)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_value_projection_leaves_the_pixels(groups):
    def paper(x, filters, w, b):
        return filter_tokenizer(x, filters, value=Projection(w, b, groups))

    def folded(x, filters, w, b):
        return linear(tokenize(as_map(x), filters), Projection(w, b, groups))

    assert_same(paper, folded, x=randn(B, N, C), filters=weight(L, C), w=weight(6, C, groups), b=randn(6))


def test_a_filter_bias_does_nothing():
    def paper(x, filters, b):
        logits = linear(x, Projection(filters, b))
        return gather(torch.softmax(logits, 1), x), torch.logsumexp(logits, 1)

    def folded(x, filters, b):
        tokens, lse = tokenize(x, filters, return_stats=True)
        return tokens, lse + b  # only lse sees it

    operands = {"x": randn(B, N, C), "filters": weight(L, C), "b": randn(L)}
    assert_same(paper, folded, **operands)
    tokens_alone = evaluate(lambda **operands: paper(**operands)[0], **operands)
    assert_close(tokens_alone["db"], torch.zeros_like(operands["b"]))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_key_convolution_of_the_recurrent_tokenizer_joins_the_queries(groups):
    def paper(x, tokens, query, query_bias, key, key_bias):
        return recurrent_tokenizer(
            x,
            tokens,
            Projection(query, query_bias),
            key=Projection(key, key_bias, groups),
            scale=0.7,
        )

    def folded(x, tokens, query, query_bias, key, key_bias):
        filters = linear(tokens, Projection(query, query_bias))
        return tokenize(x, 0.7 * back(filters, key, groups))  # the key's bias is a filter bias

    assert_same(
        paper,
        folded,
        **pixels_and_tokens(),
        query=weight(6, CT),
        query_bias=randn(6),
        key=weight(6, C, groups),
        key_bias=randn(6),
    )


@pytest.mark.parametrize("key_groups", [4, 8])
def test_heads_of_the_first_dynamic_tokenizer(key_groups):
    num_heads, width = 4, 16  # with groups a multiple of heads, each head sees its own block of the map

    def paper(x, tokens, query, key, key_bias, value, value_bias, token):
        return dynamic_tokenizer(
            x,
            tokens,
            Projection(query),
            Projection(key, key_bias, key_groups),
            num_heads=num_heads,
            value=Projection(value, value_bias, num_heads),
            token=Projection(token),
        )

    def folded(x, tokens, query, key, key_bias, value, value_bias, token):
        asking, staying = tokens.chunk(2, 1)
        queries = linear(asking, Projection(query)) * (width / num_heads) ** -0.5
        blocks = back(queries, key, key_groups).chunk(num_heads, -1)
        pooled = tokenize(as_map(x), torch.cat(blocks, 1), num_heads=num_heads)
        new = linear(linear(pooled, Projection(value, value_bias, num_heads)), Projection(token))
        return torch.cat([staying, new], 1)

    assert_same(
        paper,
        folded,
        x=randn(B, N, 32),
        tokens=randn(B, 6, CT),
        query=weight(width, CT),
        key=weight(width, 32, key_groups),
        key_bias=randn(width),
        value=weight(8, 32, num_heads),
        value_bias=randn(8),
        token=weight(CT, 8),
    )


def test_clustering_is_a_bank_of_queries():
    x = randn(B, N, C)

    def folded(x):
        centroids = kmeans(x, initial_centroids(as_map(x), L), iterations=3)
        return tokenize(as_map(x), 2 * centroids)

    assert_same(lambda x: clustering_tokenizer(as_map(x), L, iterations=3, scale=2.0), folded, x=x)


@pytest.mark.parametrize("grid", [2, 5])
def test_the_linear_position_code_is_a_pooled_table(grid):
    def paper(x, filters, code, token, token_bias):
        attention = spatial_attention(x, filters, scale=C**-0.5)
        codes = linear_position_code(attention, (H, W), grid, code)
        return linear(torch.cat([gather(attention, x), codes], -1), Projection(token, token_bias))

    def folded(x, filters, code, token, token_bias):
        resize = torch.kron(resize_matrix(H, grid, torch.float64), resize_matrix(W, grid, torch.float64))
        pooled = tokenize(as_map(x), filters * C**-0.5, extra_values=resize.T @ code)
        return linear(pooled, Projection(token, token_bias))

    operands = {
        "x": randn(B, N, C),
        "filters": weight(L, C),
        "code": randn(grid**2, 3),
        "token": weight(CT, C + 3),
        "token_bias": randn(CT),
    }
    assert_same(paper, folded, **operands)


@pytest.mark.parametrize("count", [1, 2])
def test_the_conv_position_code_is_a_pooled_table(count):
    grid, value_groups = 8, 3

    def paper(x, filters, value, token, first, second, mix, code):
        attention = spatial_attention(x, filters, scale=C**-0.5)
        codes = conv_position_code(attention, (H, W), grid, (first, second)[:count], mix, code)
        values = gather(attention, x, value=Projection(value, None, value_groups))
        return linear(torch.cat([values, codes], -1), Projection(token))

    def folded(x, filters, value, token, first, second, mix, code):
        # what the convolutions make of each cell of the grid, seen from the pixels
        cells = torch.eye(grid**2, dtype=torch.float64).view(grid**2, 1, grid, grid)
        for kernel in (first, second)[:count]:
            cells = F.conv2d(cells, kernel, stride=2, padding=1)
        resize = torch.kron(resize_matrix(H, grid, torch.float64), resize_matrix(W, grid, torch.float64))
        table = resize.T @ F.conv2d(cells, mix).flatten(1) @ code
        pooled, codes = tokenize(x, filters * C**-0.5, extra_values=table).split((C, 3), -1)
        values = linear(pooled, Projection(value, None, value_groups))
        return linear(torch.cat([values, codes], -1), Projection(token))

    operands = {
        "x": randn(B, N, C),
        "filters": weight(L, C),
        "value": weight(6, C, value_groups),
        "token": weight(CT, 6 + 3),
        "first": randn(2, 1, 3, 3) / 3,
        "second": randn(2, 2, 3, 3) / 3,
        "mix": randn(1, 2, 1, 1),
        "code": randn((grid // 2**count) ** 2, 3),
    }
    assert_same(paper, folded, **operands)


def test_the_static_tokenizer_is_one_call():
    def paper(x, filters, value, value_bias, table, token):
        value = Projection(value, value_bias, 2)
        return static_tokenizer(x, filters, value=value, extra_values=table, token=Projection(token))

    def folded(x, filters, value, value_bias, table, token):
        pooled, codes = tokenize(x, filters / C**0.5, extra_values=table).split((C, 3), -1)
        tokens = linear(pooled, Projection(value, value_bias, 2))
        return linear(torch.cat([tokens, codes], -1), Projection(token))

    assert_same(
        paper,
        folded,
        x=randn(B, N, C),
        filters=weight(L, C),
        value=weight(6, C, 2),
        value_bias=randn(6),
        table=randn(N, 3),
        token=weight(CT, 6 + 3),
    )


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (1, 3, 6, 2)])
def test_shards_of_the_pixels_merge(sizes):
    def paper(x, tokens, query, table):
        return recurrent_tokenizer(x, tokens, Projection(query), extra_values=table)

    def sharded(x, tokens, query, table):
        queries = linear(tokens, Projection(query))
        shards = zip(x.split(sizes, 1), table.split(sizes), strict=True)
        return [tokenize(part, queries, extra_values=rows, return_stats=True) for part, rows in shards]

    def merged(**operands):
        return merge(*map(torch.stack, zip(*sharded(**operands), strict=True)))[0]

    def by_the_formula(**operands):
        tokens, lse = sharded(**operands)[0]
        for more, more_lse in sharded(**operands)[1:]:
            both = torch.logaddexp(lse, more_lse)
            tokens = torch.exp(lse - both)[..., None] * tokens + torch.exp(more_lse - both)[..., None] * more
            lse = both
        return tokens

    operands = {**pixels_and_tokens(), "query": weight(C, CT), "table": randn(N, 3)}
    assert_same(paper, merged, **operands)
    assert_same(paper, by_the_formula, **operands)

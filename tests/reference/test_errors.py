"""Bad arguments of the reference: the call, the exception, and its exact message."""

from __future__ import annotations

import pytest
import torch

from vt_fast.reference import clustering, linear, ops, position, projector, tokenizers, transformer, v1
from vt_fast.reference.linear import Projection


def z(*shape):
    return torch.zeros(shape)


def p(width, out):
    return Projection(z(out, width))


X, MAP, TOKENS, A = z(2, 6, 4), z(2, 4, 2, 3), z(2, 3, 8), z(2, 6, 3)
TO_ONE = z(1, 1, 1, 1)

TABLE = [
    # linear
    (lambda: linear.linear(X, p(5, 4)), ValueError, "the input must be (..., in) with in = 5, got (2, 6, 4)"),
    (lambda: linear.linear(z(), p(5, 4)), ValueError, "the input must be (..., in) with in = 5, got ()"),
    (
        lambda: linear.linear(X, Projection(z(4, 4, 1, 1))),
        ValueError,
        "`weight` must be (out, in / groups), got (4, 4, 1, 1)",
    ),
    (
        lambda: linear.linear(X, Projection(z(4, 4), z(5))),
        ValueError,
        "`bias` must be (out) with out = 4, got (5,)",
    ),
    (
        lambda: linear.linear(X, Projection(z(3, 2), None, 2)),
        ValueError,
        "`groups` must divide the rows of `weight` = 3, got 2",
    ),
    (
        lambda: linear.linear(X, Projection(z(4, 4), None, 0)),
        ValueError,
        "`groups` must be at least 1, got 0",
    ),
    # tokenizers
    (lambda: tokenizers.spatial_attention(z(6, 4), z(3, 4)), ValueError, "`x` must be (B, N, C), got (6, 4)"),
    (lambda: tokenizers.spatial_attention([1.0], z(3, 4)), TypeError, "`x` must be a tensor, got list"),
    (lambda: tokenizers.spatial_attention(X, None), TypeError, "`filters` must be a tensor, got NoneType"),
    (
        lambda: tokenizers.spatial_attention(X, z(4)),
        ValueError,
        "`filters` must be (L, C) with C = 4, got (4,)",
    ),
    (
        lambda: tokenizers.filter_tokenizer(X, z(3, 5)),
        ValueError,
        "`filters` must be (L, C) with C = 4, got (3, 5)",
    ),
    (
        lambda: tokenizers.filter_tokenizer(X, z(1, 3, 4)),  # broadcasting would accept it
        ValueError,
        "`filters` must be (B, L, C) with B = 2, C = 4, got (1, 3, 4)",
    ),
    (
        lambda: tokenizers.gather(z(1, 6, 3), X),
        ValueError,
        "`attention` must be (B, N, L) with B = 2, N = 6, got (1, 6, 3)",
    ),
    (
        lambda: tokenizers.gather(A, X, extra_values=z(2, 6, 5)),
        ValueError,
        "`extra_values` must be (N, P) with N = 6, got (2, 6, 5)",
    ),
    (
        lambda: tokenizers.token_filters(z(3, 8), p(8, 4)),
        ValueError,
        "`tokens` must be (B, L, CT), got (3, 8)",
    ),
    (
        lambda: tokenizers.recurrent_tokenizer(X, z(1, 3, 8), p(8, 4)),
        ValueError,
        "`tokens` must be (B, L, CT) with B = 2, got (1, 3, 8)",
    ),
    (
        lambda: tokenizers.recurrent_tokenizer(X, TOKENS, p(8, 5)),
        ValueError,
        "`filters` must be (B, L, C) with B = 2, C = 4, got (2, 3, 5)",
    ),
    (
        lambda: tokenizers.pooling_tokenizer(X, (2, 2)),
        ValueError,
        "`feature_map` must be (B, C, H, W), got (2, 6, 4)",
    ),
    (lambda: tokenizers.pooling_tokenizer(MAP, (2, 0)), ValueError, "`grid[1]` must be at least 1, got 0"),
    # clustering
    (
        lambda: clustering.initial_centroids(X, 2),
        ValueError,
        "`feature_map` must be (B, C, H, W), got (2, 6, 4)",
    ),
    (lambda: clustering.clustering_tokenizer(MAP, 0), ValueError, "`num_tokens` must be at least 1, got 0"),
    (
        lambda: clustering.kmeans(X, z(1, 3, 4), iterations=1),
        ValueError,
        "`centroids` must be (B, L, C) with B = 2, C = 4, got (1, 3, 4)",
    ),
    (
        lambda: clustering.kmeans(X, z(2, 3, 4), iterations=-1),
        ValueError,
        "`iterations` must be at least 0, got -1",
    ),
    # position
    (lambda: position.resize_matrix(0, 2), ValueError, "`source` must be at least 1, got 0"),
    (
        lambda: position.linear_position_code(A, (2, 2), 2, z(4, 5)),
        ValueError,
        "`attention` must be (B, N, L) with N = 4, got (2, 6, 3)",
    ),
    (
        lambda: position.linear_position_code(A, (2, 3), 2, z(5, 5)),
        ValueError,
        "`weight` must be (S * S, P) with S * S = 4, got (5, 5)",
    ),
    (
        lambda: position.linear_position_code(A, (2, 3), 0, z(4, 5)),
        ValueError,
        "`grid` must be at least 1, got 0",
    ),
    (
        lambda: position.conv_position_code(A, (2, 3), 4, [z(1, 1, 3, 3), z(1, 2, 3, 3)], TO_ONE, z(4, 5)),
        ValueError,
        "`convolutions[1]` must be (out, in, kh, kw) with in = 1, kh = 3, kw = 3, got (1, 2, 3, 3)",
    ),
    (
        lambda: position.conv_position_code(A, (2, 3), 4, [z(2, 1, 3, 3)], TO_ONE, z(4, 5)),
        ValueError,
        "`mix` must be (out, in, kh, kw) with out = 1, in = 2, kh = 1, kw = 1, got (1, 1, 1, 1)",
    ),
    (
        lambda: position.conv_position_code(A, (2, 3), 4, [z(1, 1, 3, 3)], TO_ONE, z(16, 5)),
        ValueError,
        "`weight` must be (Cp, P) with Cp = 4, got (16, 5)",
    ),
    # first version
    (
        lambda: v1.static_tokenizer(X, z(2, 3, 4), value=None, token=None),
        ValueError,
        "`filters` must be (L, C) with C = 4, got (2, 3, 4)",
    ),
    (
        lambda: v1.dynamic_tokenizer(X, TOKENS, p(8, 4), p(4, 4), num_heads=2),
        ValueError,
        "`tokens` must be (B, L, CT) with L even, got (2, 3, 8)",
    ),
    (
        lambda: v1.dynamic_tokenizer(X, z(2, 4, 8), p(8, 6), p(4, 4), num_heads=2),
        ValueError,
        "the queries must be (B, L / 2, width) with B = 2, L / 2 = 2, width = 4, got (2, 2, 6)",
    ),
    (
        lambda: v1.dynamic_tokenizer(X, z(2, 4, 8), p(8, 4), p(4, 4)),
        ValueError,
        "`num_heads` must divide the channels of the keys = 4, got 16",
    ),
    (
        lambda: v1.dynamic_tokenizer(X, z(2, 4, 8), p(8, 4), p(4, 4), num_heads=2),
        ValueError,
        "the new tokens must be (B, L / 2, CT) with B = 2, L / 2 = 2, CT = 8, got (2, 2, 4)",
    ),
    # transformer
    (
        lambda: transformer.token_attention(TOKENS, p(8, 4), p(8, 2)),
        ValueError,
        "the queries must be (B, L, width) with B = 2, L = 3, width = 4, got (2, 3, 2)",
    ),
    (
        lambda: transformer.token_attention(TOKENS, p(8, 4), p(8, 4), num_heads=0),
        ValueError,
        "`num_heads` must be at least 1, got 0",
    ),
    (
        lambda: transformer.transformer(TOKENS, p(8, 6), p(8, 6), p(8, 8), p(8, 8), num_heads=3),
        ValueError,
        "`num_heads` must divide the channels of the values = 8, got 3",
    ),
    (
        lambda: transformer.transformer(
            TOKENS, p(8, 4), p(8, 4), p(8, 6), p(6, 1)
        ),  # broadcasting would accept it
        ValueError,
        "the residual branch must be (B, L, CT) with B = 2, L = 3, CT = 8, got (2, 3, 1)",
    ),
    (
        lambda: transformer.transformer_v1(TOKENS, p(8, 4), p(8, 4), p(8, 1), p(8, 8)),
        ValueError,
        "the residual branch must be (B, L, CT) with B = 2, L = 3, CT = 8, got (2, 3, 1)",
    ),
    (
        lambda: transformer.no_relation(z(3, 8), p(8, 8)),
        ValueError,
        "`tokens` must be (B, L, CT), got (3, 8)",
    ),
    (
        lambda: transformer.no_relation(TOKENS, p(8, 1)),
        ValueError,
        "the residual branch must be (B, L, CT) with B = 2, L = 3, CT = 8, got (2, 3, 1)",
    ),
    (
        lambda: transformer.graph_convolution(TOKENS, z(2, 3, 3), p(8, 8)),
        ValueError,
        "`adjacency` must be (rows, columns) with rows = 3, columns = 3, got (2, 3, 3)",
    ),
    # projector
    (
        lambda: projector.pixel_attention(X, TOKENS, None, None),
        ValueError,
        "the keys must be (B, L, width) with B = 2, L = 3, width = 4, got (2, 3, 8)",
    ),
    (
        lambda: projector.pixel_attention(X, z(1, 3, 4), None, None),
        ValueError,
        "`tokens` must be (B, L, CT) with B = 2, got (1, 3, 4)",
    ),
    (
        lambda: projector.pixel_attention(X, z(2, 3, 4), None, None, num_heads=3),
        ValueError,
        "`num_heads` must divide the channels of the queries = 4, got 3",
    ),
    (
        lambda: projector.projector(X, TOKENS, None, p(8, 4), None),
        ValueError,
        "the residual must be (B, N, D) with B = 2, N = 6, D = 8, got (2, 6, 4)",
    ),
    (
        lambda: projector.projector(X, TOKENS, None, p(8, 4), None, shortcut=p(4, 6)),
        ValueError,
        "the residual must be (B, N, D) with B = 2, N = 6, D = 8, got (2, 6, 6)",
    ),
    # ops
    (lambda: ops.tokenize(z(6, 4), z(3, 4)), ValueError, "`x` must be (B, N, C) or (B, C, H, W), got (6, 4)"),
    (
        lambda: ops.tokenize(X, z(1, 3, 4)),  # broadcasting would accept it
        ValueError,
        "`queries` must be (B, num_heads * L, C / num_heads) with B = 2, C / num_heads = 4, got (1, 3, 4)",
    ),
    (
        lambda: ops.tokenize(X, z(3, 4), num_heads=2),
        ValueError,
        "`num_heads` must divide the rows of `queries` = 3, got 2",
    ),
    (
        lambda: ops.tokenize(X, z(3, 2), num_heads=2),
        ValueError,
        "`num_heads` must divide the rows of `queries` = 3, got 2",
    ),
    (
        lambda: ops.tokenize(X, z(3, 1), num_heads=3),
        ValueError,
        "`num_heads` must divide the channels of `x` = 4, got 3",
    ),
    (
        lambda: ops.tokenize(X, z(3, 4), mask=z(1, 6).bool()),  # broadcasting would accept it
        ValueError,
        "`mask` must be (B, N) with B = 2, N = 6, got (1, 6)",
    ),
    (
        lambda: ops.tokenize(MAP, z(3, 4), pixel_bias=z(2, 3, 2)),  # as many pixels, in another order
        ValueError,
        "`pixel_bias` must be (B, H, W) with B = 2, H = 2, W = 3, got (2, 3, 2)",
    ),
    (
        lambda: ops.tokenize(X, z(3, 4), extra_values=z(1, 5)),  # broadcasting would accept it
        ValueError,
        "`extra_values` must be (N, P) with N = 6, got (1, 5)",
    ),
    (
        lambda: ops.tokenize(X, z(2, 2), num_heads=2, extra_values=z(6, 5)),
        ValueError,
        "`num_heads` must be 1 where `extra_values` is given, got 2",
    ),
    (
        lambda: ops.project(X, z(1, 3, 4), z(3, 4)),  # broadcasting would accept it
        ValueError,
        "`keys` must be (B, num_heads * L, C) with B = 2, C = 4, got (1, 3, 4)",
    ),
    (
        lambda: ops.project(X, z(4, 4), z(1, 4), num_heads=2),  # broadcasting would accept it
        ValueError,
        "`values` must be (L, D) with L = 2, got (1, 4)",
    ),
    (
        lambda: ops.project(X, z(3, 4), z(3, 4), num_heads=2),
        ValueError,
        "`num_heads` must divide the rows of `keys` = 3, got 2",
    ),
    (
        lambda: ops.project(X, z(4, 4), z(2, 5), num_heads=2),
        ValueError,
        "`num_heads` must divide the channels of `values` = 5, got 2",
    ),
    (
        lambda: ops.project(X, z(3, 4), z(3, 4), token_bias=z(1)),  # broadcasting would accept it
        ValueError,
        "`token_bias` must be (num_heads * L) with num_heads * L = 3, got (1,)",
    ),
    (
        lambda: ops.project(X, z(3, 4), z(3, 4), residual=z(1, 6, 4)),  # broadcasting would accept it
        ValueError,
        "the pixels of `residual` must be (B, N, D) with B = 2, N = 6, D = 4, got (1, 6, 4)",
    ),
    (
        lambda: ops.project_tokenize(X, z(3, 4), z(3, 5), z(2, 4)),
        ValueError,
        "`queries` must be (num_heads * L, C / num_heads) with C / num_heads = 5, got (2, 4)",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), TABLE, ids=[row[2] for row in TABLE])
def test_refused_with_these_words(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == words

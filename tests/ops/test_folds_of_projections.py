"""The folds that turn the paper's projector into one op, and BatchNorm's, against the paper, in float64.

One side is vt_fast.reference on the unfolded parameters. The other folds them here, by hand, and calls
vt_fast.functional. Results and the gradients of every unfolded parameter must agree.
"""

import pytest
import torch
from torch.nn import functional as F

from tests._support.comparing import assert_same
from tests._support.folding import CT, B, C, L, N, as_map, as_pixels, back, pixels_and_tokens, randn, weight
from vt_fast.functional import project, tokenize
from vt_fast.reference.linear import Projection, linear
from vt_fast.reference.projector import projector
from vt_fast.reference.tokenizers import gather, spatial_attention

pytestmark = [pytest.mark.on_cpu, pytest.mark.one_backend]


def fold_projector(tokens, query, query_bias, key, key_bias, value, value_bias, num_heads, groups, scale):
    """Keys (B, R, C), values (B, L, D) and bias (B, R) of equation 5 with all its options."""
    rows = linear(tokens, Projection(key, key_bias)) * scale
    keys, biases = [], []
    for head, block in enumerate(rows.chunk(num_heads, -1)):
        # head h compares block h of the width: the other channels of its rows are 0
        start = head * block.shape[-1]
        full = F.pad(block, (start, rows.shape[-1] - start - block.shape[-1]))
        keys.append(back(full, query, groups))
        biases.append(full @ query_bias)
    values = linear(tokens, Projection(value, value_bias))
    return torch.cat(keys, 1), values, torch.cat(biases, 1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_the_query_projection_leaves_the_pixels_and_heads_are_rows(num_heads, groups):
    width = 8
    scale = (width / num_heads) ** -0.5

    def paper(x, tokens, query, query_bias, key, key_bias, value, value_bias):
        return projector(
            x,
            tokens,
            Projection(query, query_bias, groups),
            Projection(key, key_bias),
            Projection(value, value_bias),
            num_heads=num_heads,
            scale=scale,
        )

    def folded(x, tokens, **named):
        keys, values, token_bias = fold_projector(
            tokens, **named, num_heads=num_heads, groups=groups, scale=scale
        )
        x = as_map(x)
        return as_pixels(project(x, keys, values, num_heads=num_heads, token_bias=token_bias, residual=x))

    assert_same(
        paper,
        folded,
        **pixels_and_tokens(),
        query=weight(width, C, groups),
        query_bias=randn(width),
        key=weight(width, CT),
        key_bias=randn(width),
        value=weight(C, CT),
        value_bias=randn(C),
    )


@pytest.mark.parametrize("num_heads", [1, 3])
def test_heads_without_any_projection(num_heads):
    def folded(x, tokens):
        width = C // num_heads
        blocks = [
            F.pad(block, (h * width, C - (h + 1) * width))
            for h, block in enumerate(tokens.chunk(num_heads, -1))
        ]
        return project(x, torch.cat(blocks, 1), tokens, num_heads=num_heads, residual=x)

    assert_same(
        lambda x, tokens: projector(x, tokens, None, None, None, num_heads=num_heads),
        folded,
        x=randn(B, N, C) / 2,
        tokens=randn(B, L, C),
    )


def test_grouped_keys_and_values_of_the_projector_and_a_shortcut():
    def paper(x, tokens, query, key, value, shortcut, shortcut_bias):
        return projector(
            x,
            tokens,
            Projection(query, None, 4),
            Projection(key, None, 2),
            Projection(value, None, 2),
            shortcut=Projection(shortcut, shortcut_bias),
        )

    def folded(x, tokens, query, key, value, shortcut, shortcut_bias):
        keys = back(linear(tokens, Projection(key, None, 2)), query, 4)
        values = linear(tokens, Projection(value, None, 2))
        # over the tokens the weights of a pixel sum to 1 as well: a constant may join the values
        return project(x, keys, values + shortcut_bias, residual=x @ shortcut.T)

    assert_same(
        paper,
        folded,
        **pixels_and_tokens(),
        query=weight(8, C, 4),
        key=weight(8, CT, 2),
        value=weight(16, CT, 2),
        shortcut=weight(16, C),
        shortcut_bias=randn(16),
    )


def batch_norm(width):
    """Parameters of a BatchNorm in eval mode."""
    return {
        "gamma": randn(width),
        "beta": randn(width),
        "mean": randn(width),
        "variance": torch.rand(width, dtype=torch.float64) + 0.5,
    }


def normalised(y, gamma, beta, mean, variance, training=False):
    flat = F.batch_norm(y.flatten(0, 1), mean, variance, gamma, beta, training, eps=1e-5)
    return flat.unflatten(0, y.shape[:2])


def absorb(w, b, gamma, beta, mean, variance):
    """The convolution with an eval-mode BatchNorm after it, as one convolution."""
    scale = gamma * torch.rsqrt(variance + 1e-5)
    return w * scale[:, None], (b - mean) * scale + beta


def test_eval_mode_batch_norm_after_the_value_convolution():
    def paper(x, filters, w, b, training=False, **norm):
        values = normalised(linear(x, Projection(w, b, 2)), **norm, training=training)
        return gather(spatial_attention(x, filters), values)

    def folded(x, filters, w, b, **norm):
        return linear(tokenize(x, filters), Projection(*absorb(w, b, **norm), 2))

    operands = {"x": randn(B, N, C), "filters": weight(L, C), "w": weight(6, C, 2), "b": randn(6)}
    norm = batch_norm(6)
    # F.batch_norm has no gradient for its statistics
    statistics = {name: norm.pop(name) for name in ("mean", "variance")}
    operands |= norm

    def with_statistics(function, **settings):
        return lambda **operands: function(**operands, **statistics, **settings)

    assert_same(with_statistics(paper), with_statistics(folded), **operands)
    trained = with_statistics(paper, training=True)(**operands)
    assert (trained - with_statistics(folded)(**operands)).abs().max() > 0.1  # there it does not fold


def test_eval_mode_batch_norm_after_the_query_and_key_convolutions():
    norm = batch_norm(8)
    statistics = {name: norm.pop(name) for name in ("mean", "variance")}

    def paper(x, tokens, query, key, value, **norm):
        queries = normalised(linear(x, Projection(query)), **norm, **statistics)
        keys = normalised(linear(tokens, Projection(key)), **norm, **statistics)
        return x + torch.softmax(queries @ keys.mT, -1) @ linear(tokens, Projection(value))

    def folded(x, tokens, query, key, value, **norm):
        none = torch.zeros(8, dtype=torch.float64)
        query, query_bias = absorb(query, none, **norm, **statistics)
        keys = linear(tokens, Projection(*absorb(key, none, **norm, **statistics)))
        values = linear(tokens, Projection(value))
        return project(x, back(keys, query), values, token_bias=keys @ query_bias, residual=x)

    assert_same(
        paper,
        folded,
        **pixels_and_tokens(),
        query=weight(8, C),
        key=weight(8, CT),
        value=weight(C, CT),
        **norm,
    )

"""Each module computes the equation of `vt_fast.reference` that carries its name, with its own parameters."""

from __future__ import annotations

import pytest
import torch

from tests._support.nn_cases import RELATIONS, TOKENIZERS, B, C, H, L, W, feature_map, incoming, made
from vt_fast import nn
from vt_fast.nn.linear import projection_of
from vt_fast.reference.clustering import clustering_tokenizer
from vt_fast.reference.position import conv_position_code, linear_position_code
from vt_fast.reference.tokenizers import filter_tokenizer, pooling_tokenizer, recurrent_tokenizer
from vt_fast.reference.transformer import (
    graph_convolution,
    no_relation,
    scaled_attention,
    transformer,
    transformer_v1,
)
from vt_fast.reference.v1 import static_tokenizer


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def parts(module):
    return {"value": projection_of(module.value), "token": projection_of(module.token)}


@pytest.mark.parametrize("name", ["filter", "filter value", "filter linear position", "filter conv position"])
def test_filter(name):
    module, x = made(TOKENIZERS[name]), feature_map("contiguous")
    expected = filter_tokenizer(
        x.flatten(2).mT,
        module.filters,
        scale=module.scale,
        extra_values=module.position_table(x),
        **parts(module),
    )
    close(module(x), expected)


@pytest.mark.parametrize("name", ["static", "static position"])
def test_static(name):
    module, x = made(TOKENIZERS[name]), feature_map("contiguous")
    close(
        module(x),
        static_tokenizer(
            x.flatten(2).mT, module.filters, extra_values=module.position_table(x), **parts(module)
        ),
    )


@pytest.mark.parametrize("name", ["recurrent", "recurrent key", "recurrent groups", "recurrent position"])
def test_recurrent(name):
    module, x = made(TOKENIZERS[name]), feature_map("contiguous")
    tokens = incoming(module)
    expected = recurrent_tokenizer(
        x.flatten(2).mT,
        tokens,
        projection_of(module.query),
        key=projection_of(module.key),
        scale=module.scale,
        extra_values=module.position_table(x),
        **parts(module),
    )
    close(module(x, tokens), expected)


@pytest.mark.parametrize("name", ["clustering", "clustering value"])
def test_clustering(name):
    module, x = made(TOKENIZERS[name]), feature_map("contiguous")
    close(
        module(x),
        clustering_tokenizer(x, L, iterations=module.iterations, scale=module.scale, **parts(module)),
    )


@pytest.mark.parametrize("name", ["pooling", "pooling value"])
def test_pooling(name):
    module, x = made(TOKENIZERS[name]), feature_map("contiguous")
    close(module(x), pooling_tokenizer(x, module.grid, **parts(module)))


@pytest.mark.parametrize(
    ("count", "grid"), [(16, (4, 4)), (8, (2, 4)), (7, (1, 7)), (1, (1, 1)), (12, (3, 4))]
)
def test_pooling_grid_is_as_square_as_can_be(count, grid):
    assert nn.PoolingTokenizer(C, count).grid == grid


def normalised(tokens, norm):
    """Over the channels of each token, or over all tokens of all samples; both with eps = 1e-5."""
    over = (0, 1) if isinstance(norm, torch.nn.BatchNorm1d) else 2
    variance, mean = torch.var_mean(tokens, over, correction=0, keepdim=True)
    return (tokens - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("name", RELATIONS)
def test_relations(name):
    module = made(RELATIONS[name])
    tokens = incoming(module)
    entering = tokens if module.token_norm is None else normalised(tokens, module.token_norm)
    if isinstance(module, nn.GraphConv):
        expected = graph_convolution(entering, module.adjacency, projection_of(module.linear))
    elif isinstance(module, nn.TokenFeedForward):
        expected = no_relation(entering, projection_of(module.linear))
    elif module.variant == "scaled":
        layers = (module.key, module.query, module.value)
        expected = scaled_attention(
            entering,
            *(projection_of(layer) for layer in layers),
            module.gain,
            num_heads=2,
            scale=module.scale,
        )
    elif module.variant == "v1":
        layers = (module.key, module.query, module.value, module.linear)
        expected = transformer_v1(
            entering, *(projection_of(layer) for layer in layers), num_heads=2, scale=module.scale
        )
    else:
        layers = (module.key, module.query, module.first, module.second)
        expected = transformer(
            entering,
            *(projection_of(layer) for layer in layers),
            value=projection_of(module.value),
            num_heads=module.num_heads,
            scale=module.scale,
        )
    close(module(tokens), expected)


def test_default_scales_are_one_over_the_root_of_the_width():
    assert (
        nn.FilterTokenizer(64).scale
        == nn.RecurrentTokenizer(64).scale
        == nn.StaticTokenizer(64).scale
        == 1 / 8
    )
    assert nn.DynamicTokenizer(64, num_heads=4).scale == 1 / 4
    assert nn.TokenTransformer(128).scale == 1 / 8
    assert nn.TokenTransformer(128, num_heads=4).scale == 1 / 4
    assert nn.Projector(64, num_heads=4).scale == 1 / 4
    assert nn.ClusteringTokenizer(64).scale == 1


class TestPositionCodes:
    """A^T E with E = table(H, W) is the code as the paper writes it, and so are its gradients."""

    MAKERS = {  # noqa: RUF012
        "linear": lambda: nn.LinearPositionCode(5, 6),
        "linear, larger than the map": lambda: nn.LinearPositionCode(14, 3),
        "conv, even": lambda: nn.ConvPositionCode(8, 6),
        "conv, odd": lambda: nn.ConvPositionCode(7, 6, width=2),
        "conv, three": lambda: nn.ConvPositionCode(10, 4, convolutions=3, width=3),
    }

    @staticmethod
    def plain(code, attention):
        if isinstance(code, nn.LinearPositionCode):
            return linear_position_code(attention, (H, W), code.grid, code.weight)
        return conv_position_code(attention, (H, W), code.grid, list(code.kernels), code.mix, code.weight)

    @pytest.mark.parametrize("name", MAKERS)
    def test_table(self, name):
        code = made(self.MAKERS[name])
        attention = torch.rand(B, H * W, L, dtype=torch.float64).softmax(1).requires_grad_()
        folded, written = attention.mT @ code.table(H, W), self.plain(code, attention)
        close(folded, written)
        close(code._reference(attention, (H, W)), written)
        weights, leaves = torch.randn_like(written), [attention, *code.parameters()]
        for one, two in zip(
            torch.autograd.grad((folded * weights).sum(), leaves),
            torch.autograd.grad((written * weights).sum(), leaves),
            strict=True,
        ):
            close(one, two)

    def test_the_table_of_a_large_map_takes_no_square(self):
        """200 x 304 pixels: an N x N identity would take 29 GB in float64."""
        assert nn.ConvPositionCode(14, 49).table(200, 304).shape == (60800, 49)

    def test_the_first_versions_numbers(self):
        assert nn.ConvPositionCode(14, 49, convolutions=1).weight.shape == (49, 49)

    def test_codes_start_at_order_one_for_attention_on_one_pixel(self):
        torch.manual_seed(0)
        for code in (nn.LinearPositionCode(14, 49), nn.ConvPositionCode(14, 49)):
            assert 0.3 < code.table(14, 14).std() < 3

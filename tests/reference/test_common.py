"""Every function of the reference: gradients of both orders, any dtype and device, unchanged inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from vt_fast.reference import clustering, linear, position, projector, tokenizers, transformer, v1
from vt_fast.reference.linear import Projection


class Case(NamedTuple):
    """A function of tensors alone, and their shapes: a pixel is C = 4 wide, a token CT = 6, N = 6, L = 2."""

    function: Callable[..., Tensor]
    shapes: list[tuple[int, ...]]


X, MAP, TOKENS, A = (1, 6, 4), (1, 4, 2, 3), (1, 2, 6), (1, 6, 2)

CASES = {
    "linear": Case(lambda x, w, b: linear.linear(x, Projection(w, b, 2)), [X, (6, 2), (6,)]),
    "spatial_attention": Case(lambda x, f: tokenizers.spatial_attention(x, f, scale=0.5), [X, (2, 4)]),
    "spatial_attention per sample": Case(tokenizers.spatial_attention, [X, (1, 2, 4)]),
    "gather": Case(lambda a, x, e: tokenizers.gather(a, x, extra_values=e), [A, X, (6, 3)]),
    "filter_tokenizer": Case(
        lambda x, f, v, t: tokenizers.filter_tokenizer(
            x, f, value=Projection(v, None, 2), token=Projection(t)
        ),
        [X, (2, 4), (4, 2), (6, 4)],
    ),
    "token_filters": Case(
        lambda t, q, b: tokenizers.token_filters(t, Projection(q, b)), [TOKENS, (4, 6), (4,)]
    ),
    "recurrent_tokenizer": Case(
        lambda x, t, q, k: tokenizers.recurrent_tokenizer(x, t, Projection(q), key=Projection(k, None, 2)),
        [X, TOKENS, (4, 6), (4, 2)],
    ),
    "pooling_tokenizer": Case(
        lambda m, v, t: tokenizers.pooling_tokenizer(m, (2, 2), value=Projection(v), token=Projection(t)),
        [MAP, (3, 4), (6, 3)],
    ),
    "initial_centroids": Case(lambda m: clustering.initial_centroids(m, 3), [MAP]),
    "linear_position_code": Case(lambda a, w: position.linear_position_code(a, (2, 3), 2, w), [A, (4, 3)]),
    "conv_position_code": Case(
        lambda a, c, m, w: position.conv_position_code(a, (2, 3), 4, [c], m, w),
        [A, (2, 1, 3, 3), (1, 2, 1, 1), (4, 3)],
    ),
    "static_tokenizer": Case(
        lambda x, f, v, e, t: v1.static_tokenizer(
            x, f, value=Projection(v), extra_values=e, token=Projection(t)
        ),
        [X, (2, 4), (4, 4), (6, 2), (6, 6)],
    ),
    "dynamic_tokenizer": Case(
        lambda x, t, q, k, o: v1.dynamic_tokenizer(
            x, t, Projection(q), Projection(k, None, 2), num_heads=2, token=Projection(o)
        ),
        [X, TOKENS, (4, 6), (4, 2), (6, 4)],
    ),
    "token_attention": Case(
        lambda t, k, q: transformer.token_attention(t, Projection(k), Projection(q), num_heads=2),
        [TOKENS, (4, 6), (4, 6)],
    ),
    "transformer": Case(
        lambda t, k, q, v, f, g: transformer.transformer(
            t, Projection(k), Projection(q), Projection(f), Projection(g), value=Projection(v), num_heads=2
        ),
        [TOKENS, (4, 6), (4, 6), (6, 6), (3, 6), (6, 3)],
    ),
    "transformer_v1": Case(
        lambda t, k, q, v, f: transformer.transformer_v1(
            t, Projection(k), Projection(q), Projection(v), Projection(f)
        ),
        [TOKENS, (4, 6), (4, 6), (6, 6), (6, 6)],
    ),
    "no_relation": Case(lambda t, f: transformer.no_relation(t, Projection(f)), [TOKENS, (6, 6)]),
    "graph_convolution": Case(
        lambda t, a, f: transformer.graph_convolution(t, a, Projection(f)), [TOKENS, (2, 2), (6, 6)]
    ),
    "pixel_attention": Case(
        lambda x, t, q, k: projector.pixel_attention(x, t, Projection(q), Projection(k), num_heads=2),
        [X, TOKENS, (4, 4), (4, 6)],
    ),
    "projector": Case(
        lambda x, t, q, k, v, s: projector.projector(
            x, t, Projection(q), Projection(k), Projection(v), num_heads=2, scale=0.5, shortcut=Projection(s)
        ),
        [X, TOKENS, (4, 4), (4, 6), (2, 6), (2, 4)],
    ),
}
# k-means takes its centroids as constants: no gradient to check, but the rest holds.
CLUSTERING = {
    "kmeans": Case(lambda x, c: clustering.kmeans(x, c, iterations=2), [X, (1, 2, 4)]),
    "clustering_tokenizer": Case(
        lambda m, t: clustering.clustering_tokenizer(m, 3, token=Projection(t)), [MAP, (6, 4)]
    ),
}
every_case = pytest.mark.parametrize("case", (CASES | CLUSTERING).values(), ids=(CASES | CLUSTERING).keys())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_gradients_of_both_orders(make, case):
    tensors = [make.tensor(*shape).requires_grad_() for shape in case.shapes]
    assert torch.autograd.gradcheck(case.function, tensors)
    assert torch.autograd.gradgradcheck(case.function, tensors)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(make, case, dtype):
    tensors = [make.tensor(*shape).to(dtype) for shape in case.shapes]
    result = case.function(*tensors)
    assert result.dtype == dtype
    assert result.isfinite().all()


@every_case
def test_device_is_kept(make, case):
    tensors = [make.tensor(*shape) for shape in case.shapes]
    result = case.function(*(tensor.to("meta") for tensor in tensors))
    assert result.device.type == "meta"
    assert result.shape == case.function(*tensors).shape


@every_case
def test_inputs_are_left_alone(make, case):
    tensors = [make.tensor(*shape) for shape in case.shapes]
    copies = [tensor.clone() for tensor in tensors]
    case.function(*tensors)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


class Chain(torch.nn.Module):
    """One map through functions of every file, with the sizes read from the map."""

    def forward(self, feature_map: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        x = feature_map.flatten(2).transpose(1, 2)
        size = (feature_map.shape[2], feature_map.shape[3])
        dense, grouped = Projection(weight), Projection(weight[:, :2], None, 2)
        tokens = clustering.clustering_tokenizer(feature_map, 4, iterations=1)
        tokens = transformer.transformer_v1(tokens, dense, dense, grouped, dense, num_heads=2)
        code = position.linear_position_code(tokenizers.spatial_attention(x, tokens), size, 2, weight)
        tokens = v1.dynamic_tokenizer(x, tokens, dense, grouped, num_heads=2)
        return code, projector.projector(x, tokens, grouped, None, dense, num_heads=2)


def test_sizes_may_be_symbols(make, close):
    weight = make.tensor(4, 4)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(
        Chain(), (make.tensor(2, 4, 3, 5), weight), dynamic_shapes=({0: batch}, None)
    )
    feature_map = make.tensor(3, 4, 3, 5)
    for actual, expected in zip(
        exported.module()(feature_map, weight), Chain()(feature_map, weight), strict=True
    ):
        close(actual, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_sizes_may_be_traced(make, close):
    feature_map, weight = make.tensor(2, 4, 3, 5), make.tensor(4, 4)
    traced = torch.jit.trace(Chain(), (feature_map, weight))
    for actual, expected in zip(traced(feature_map, weight), Chain()(feature_map, weight), strict=True):
        close(actual, expected)

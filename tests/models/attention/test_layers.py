"""The layers of table 8's networks against plain code of their papers, in float64: results and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vt_fast.models import attention
from vt_fast.models.attention import windows


def filled(module):
    """In float64, with every parameter drawn, also those that start at zero."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
    return module


def assert_agree(module, other, x, tolerance=1e-12):
    """The results, and the gradients of the map and of all parameters; each relative to its largest value."""
    parameters = dict(module.named_parameters())
    given = [x, *parameters.values()]
    results = [module(x), other(x)]
    cotangent = torch.randn_like(results[0])
    gradients = [torch.autograd.grad(result, given, cotangent) for result in results]
    pairs = {"result": results, **dict(zip(["x", *parameters], zip(*gradients, strict=True), strict=True))}
    for name, (one, two) in pairs.items():
        assert two.abs().max() > 1e-6, f"{name} tests nothing"
        assert (one - two).abs().max() / two.abs().max() < tolerance, name


def conv(x, layer):
    weight = layer.weight
    return F.conv2d(x, weight if weight.dim() == 4 else weight[:, :, None, None], layer.bias)


def official_double_attention(module):
    """With the bias that theta has in other code, and which changes nothing."""
    bias = torch.randn(module.theta.weight.shape[0], dtype=torch.float64)

    def forward(x):
        batch, _, height, width = x.shape
        features = conv(x, module.phi).flatten(2)
        gather = torch.softmax((conv(x, module.theta) + bias[:, None, None]).flatten(2), dim=2)
        distribute = torch.softmax(conv(x, module.rho).flatten(2), dim=1)
        vectors = torch.bmm(features, gather.transpose(1, 2))
        mixed = torch.bmm(vectors, distribute).reshape(batch, -1, height, width)
        return x + conv(mixed, module.out)

    return forward


def official_global_reasoning(module):
    """The unit of the authors' repository."""

    def forward(x):
        batch, _, height, width = x.shape
        state, weights = conv(x, module.phi).flatten(2), conv(x, module.theta).flatten(2)
        nodes = torch.matmul(state, weights.permute(0, 2, 1))
        if module.normalize:
            nodes = nodes * (1 / state.shape[2])
        across = F.conv1d(nodes.permute(0, 2, 1), module.adjacency.weight[:, :, None], module.adjacency.bias)
        mixed = F.conv1d(torch.relu(across.permute(0, 2, 1) + nodes), module.update.weight[:, :, None])
        y = torch.matmul(mixed, weights).reshape(batch, -1, height, width)
        norm = module.norm
        y = F.batch_norm(
            conv(y, module.out), norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias,
            module.training, norm.momentum, norm.eps,
        )  # fmt: skip
        return x + y

    return forward


# More pixels than vectors, and fewer.
SIZES = [(9, 7), (2, 3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_double_attention_is_the_official_one(size, layout, backend):
    module = filled(attention.DoubleAttention(32, features=12, num_vectors=10, backend=backend))
    x = torch.randn(2, 32, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert_agree(module, official_double_attention(module), x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("training", "normalize"), [(True, False), (False, True)])
@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_global_reasoning_is_the_official_one(size, training, normalize, backend):
    module = attention.GlobalReasoning(32, num_nodes=10, normalize=normalize, backend=backend)
    module = filled(module).train(training)
    x = torch.randn(2, 32, *size, dtype=torch.float64, requires_grad=True)
    if training:
        # BatchNorm's own weights must not change between the two calls.
        module.norm.momentum = 0.0
    assert_agree(module, official_global_reasoning(module), x)


def test_double_attention_takes_pixels():
    module = filled(attention.DoubleAttention(16))
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    rows = module(x.flatten(2).mT)
    torch.testing.assert_close(rows.mT.unflatten(2, (5, 4)), module(x), rtol=0, atol=1e-12)


def test_units_start_as_the_identity():
    x = torch.randn(2, 16, 5, 4)
    for make in (attention.DoubleAttention, attention.GlobalReasoning):
        assert torch.equal(make(16)(x), x)


def in_windows(x, size, mode="constant"):
    """(B, C, N, size * size) one pixel at a time."""
    before = (size - 1) // 2
    padded = F.pad(x, (before, size - 1 - before) * 2, mode=mode)
    pixels = [
        padded[:, :, row : row + size, column : column + size].flatten(2)
        for row in range(x.shape[2])
        for column in range(x.shape[3])
    ]
    return torch.stack(pixels, 2)


def per_pixel(layer, x):
    return conv(x, layer).flatten(2)


def stand_alone(module):
    size, heads = module.size, module.num_heads

    def forward(x):
        rows, columns = (
            each.repeat_interleave(size, 1) if each is module.rows else each.repeat(1, size, 1)
            for each in (module.rows, module.columns)
        )
        relative = torch.cat([rows, columns], 2)  # (heads, size^2, d)
        queries = per_pixel(module.query, x).unflatten(1, (heads, -1))
        keys = in_windows(conv(x, module.key), size).unflatten(1, (heads, -1))
        values = in_windows(conv(x, module.value), size).unflatten(1, (heads, -1))
        logits = torch.einsum("bhdn,bhdno->bhno", queries, keys)
        logits = logits + torch.einsum("bhdn,hod->bhno", queries, relative)
        mixed = torch.einsum("bhno,bhdno->bhdn", logits.softmax(3), values).flatten(1, 2)
        y = mixed.unflatten(2, x.shape[2:])
        return y if module.stride == 1 else F.avg_pool2d(y, module.stride, ceil_mode=True)

    return forward


def stem(module):
    def forward(x):
        size, heads = module.size, module.num_heads
        queries = per_pixel(module.query, x).unflatten(1, (heads, -1))
        keys = in_windows(conv(x, module.key), size).unflatten(1, (heads, -1))
        places = (module.rows[:, None] + module.columns[None]).flatten(0, 1)
        shares = torch.softmax(places @ module.mixtures.mT, 1)
        values = torch.einsum("om,mdc,bcno->bdno", shares, module.values, in_windows(x, size))
        weights = torch.einsum("bhdn,bhdno->bhno", queries, keys).softmax(3)
        mixed = torch.einsum("bhno,bhdno->bhdn", weights, values.unflatten(1, (heads, -1)))
        return mixed.flatten(1, 2).unflatten(2, x.shape[2:])

    return forward


def local_relation(module):
    def forward(x):
        size, stride = module.size, module.stride
        first, _, last = module.geometry
        prior = torch.relu(F.linear(module.offsets, first.weight, first.bias)) @ last.weight.T
        queries, keys = per_pixel(module.query, x), in_windows(conv(x, module.key), size)
        weights = (-((queries[..., None] - keys) ** 2) + prior.mT[:, None]).softmax(3)
        weights = weights.repeat_interleave(module.share, 1)[:, : module.channels]
        y = (weights * in_windows(conv(x, module.value), size)).sum(3).unflatten(2, x.shape[2:])
        return y[:, :, ::stride, ::stride]

    return forward


def pairwise(module):
    def forward(x):
        batch, _, height, width = x.shape
        down, right = torch.meshgrid(
            torch.linspace(-1, 1, height).double(), torch.linspace(-1, 1, width).double(), indexing="ij"
        )
        places = conv(torch.stack([right, down])[None], module.place)
        steps = places.flatten(2)[..., None] - in_windows(places, module.size, "reflect")
        keys = in_windows(conv(x, module.key), module.size, "reflect")
        differences = per_pixel(module.query, x)[..., None] - keys
        relation = torch.cat([differences, steps.expand(batch, -1, -1, -1)], 1)
        weights = module.relation(relation).softmax(3)
        return vector_mixture(module, x, weights)

    return forward


def patchwise(module):
    def forward(x):
        keys = in_windows(conv(x, module.key), module.size, "reflect")  # (B, r, N, size^2)
        patches = torch.cat([per_pixel(module.query, x), keys.permute(0, 1, 3, 2).flatten(1, 2)], 1)
        weights = module.relation(patches[..., None]).squeeze(3).unflatten(1, (-1, module.size**2))
        return vector_mixture(module, x, weights.permute(0, 1, 3, 2))

    return forward


def vector_mixture(module, x, weights):
    values = in_windows(conv(x, module.value), module.size, "reflect")
    share = values.shape[1] // weights.shape[1]
    return (weights.repeat_interleave(share, 1) * values).sum(3).unflatten(2, x.shape[2:])


def augmented(module):
    """Each logit on its own."""

    def forward(x):
        convolved, step = F.conv2d(x, module.conv.weight, None, module.conv.stride, 1), module.pooling
        if step > 1:
            x = F.avg_pool2d(x, step + 1, step, step // 2, count_include_pad=False)
        height, width = x.shape[2:]
        queries, keys, values = (
            part.unflatten(1, (module.num_heads, -1)).flatten(3)
            for part in conv(x, module.qkv).split(module.widths, 1)
        )
        queries = queries / queries.shape[2] ** 0.5
        zero = module.max_size - 1
        logits = []
        for query in range(height * width):
            for key in range(height * width):
                row, column = key // width - query // width + zero, key % width - query % width + zero
                seen = keys[..., key] + module.rows[row] + module.columns[column]
                logits.append((queries[..., query] * seen).sum(2))
        weights = torch.stack(logits, 2).unflatten(2, (height * width, -1)).softmax(3)
        mixed = torch.einsum("bhij,bhdj->bhdi", weights, values).flatten(1, 2).unflatten(2, (height, width))
        attended = conv(mixed, module.out)
        if attended.shape != convolved.shape:
            attended = F.interpolate(attended, convolved.shape[2:], mode="bilinear")
        return torch.cat([convolved, attended], 1)

    return forward


LAYERS = {
    "stand-alone": (attention.StandAloneAttention(8, 16, num_heads=2, size=3), stand_alone),
    "stand-alone, stride": (attention.StandAloneAttention(8, num_heads=2, size=5, stride=2), stand_alone),
    "stem": (attention.AttentionStem(3, 8, num_heads=2, num_mixtures=3), stem),
    "local relation": (attention.LocalRelation(10, size=5, share=4), local_relation),
    "local relation, stride": (attention.LocalRelation(8, size=3, share=4, stride=2), local_relation),
    "pairwise": (attention.PairwiseAttention(32, share=4, size=5), pairwise),
    "patchwise": (attention.PatchwiseAttention(32, share=4, size=5), patchwise),
    "augmented": (
        attention.AugmentedConv2d(6, 10, key_channels=8, value_channels=4, num_heads=2, max_size=8),
        augmented,
    ),
    "augmented, pooled": (
        attention.AugmentedConv2d(
            6, 10, stride=2, pool=2, key_channels=4, value_channels=4, num_heads=2, max_size=3
        ),
        augmented,
    ),
}


CASES = [
    (name, unfold) for name in LAYERS for unfold in (False, True) if not (unfold and "augmented" in name)
]


@pytest.mark.parametrize(("name", "unfold"), CASES)
def test_equals_its_formula(name, unfold):
    module, written = LAYERS[name]
    module.unfold = unfold
    module = filled(module).eval()
    x = torch.randn(2, module.channels, 7, 6, dtype=torch.float64, requires_grad=True)
    assert_agree(module, written(module), x, tolerance=1e-11)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, "constant"), (4, 1, "constant"), (5, 2, "reflect")]
)
def test_gathered_windows_are_the_views(size, stride, padding):
    x = torch.randn(2, 3, 7, 6)
    seen = torch.stack(windows.views(x, size, stride, padding), 2).flatten(3)
    assert torch.equal(seen, windows.gathered(x, size, stride, padding))


def test_windows_keep_no_copies_for_the_backward_pass():
    """Unlike gathered windows, of which the backward pass needs all 49."""
    kept = {}
    for unfold in (False, True):
        module = attention.StandAloneAttention(32, num_heads=8, unfold=unfold)
        storages = {}

        def note(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module(torch.randn(1, 32, 14, 14))
        kept[unfold] = sum(storages.values())
    map_bytes = 4 * 32 * 14 * 14
    assert kept[True] > 49 * map_bytes > kept[False]

"""What the modules do before any training: next to nothing, with logits of order 1, and all can learn."""

from __future__ import annotations

import math

import pytest
import torch

from tests._support.nn_cases import CASES, RELATIONS, C, L, build, feature_map, incoming, run, stack
from vt_fast import nn


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("form", ["contiguous", "rows"])
def test_the_map_is_the_input(backend, form):
    x = feature_map(form, dtype=torch.float32)
    y, _ = stack(C, 3, num_tokens=L, num_heads=2, backend=backend)(x)
    assert torch.equal(y, x)


def test_the_map_is_the_shortcut_where_channels_change():
    x = feature_map("contiguous", dtype=torch.float32)
    module = stack(C, 2, num_tokens=L, out_channels=32)
    y, _ = module(x)
    torch.testing.assert_close(y, module[0].projector.residual(x))


@pytest.mark.parametrize("name", [name for name in RELATIONS if "no value" not in name])
def test_the_relation_starts_at_or_near_the_identity(name):
    module = RELATIONS[name]()
    tokens = incoming(module, dtype=torch.float32)
    entering = (
        tokens if module.token_norm is None else module.token_norm(tokens.flatten(0, 1)).view_as(tokens)
    )
    if isinstance(module, nn.TokenTransformer):
        assert torch.equal(module(tokens), entering)
    else:
        # T + relu(0.1 z) with z of order 1: half of the entries move, by 0.1 / sqrt(2) in the quadratic mean.
        change = (module(tokens) - entering).square().mean().sqrt().item()
        assert 0.03 < change < 0.12


@pytest.mark.parametrize(("channels", "length"), [(16, 4.0), (64, 6.0), (1024, 6.0)])
def test_batch_norm_leaves_nothing_that_all_tokens_share_and_a_short_rest(channels, length):
    module = nn.TokenTransformer(channels, token_norm="batch")
    tokens = module(5 + 3 * torch.randn(8, 16, channels))
    assert tokens.mean((0, 1)).abs().max() < 1e-5
    assert tokens.norm(dim=2).square().mean().sqrt().item() == pytest.approx(length, rel=1e-3)


def test_a_norm_that_there_is_not():
    with pytest.raises(
        ValueError, match='`token_norm` must be one of "batch", "layer" or None, got \'group\''
    ):
        nn.TokenTransformer(8, token_norm="group")


def logits_of(module, x, tokens):
    """The folded logits of a tokenizer or projector for a map of unit variance."""
    rows = x.flatten(2).transpose(1, 2)
    if isinstance(module, nn.Projector):
        keys, _, _ = module.operands(tokens)
        return rows @ keys.transpose(1, 2)
    queries = module.queries(tokens)
    if module.op_heads > 1:
        rows = rows.unflatten(2, (module.op_heads, -1)).transpose(1, 2)
        queries = queries.unflatten(1, (module.op_heads, -1))
    return rows @ queries.transpose(-2, -1)


@pytest.mark.parametrize("channels", [64, 512])
@pytest.mark.parametrize(
    "make",
    [
        lambda c: nn.FilterTokenizer(c, 16),
        lambda c: nn.StaticTokenizer(c, 16),
        lambda c: nn.RecurrentTokenizer(c, 16, 128),
        lambda c: nn.RecurrentTokenizer(c, 16, 128, key_groups=4),
        lambda c: nn.DynamicTokenizer(c, 16, 128, num_heads=16, key_groups=4, value_groups=4),
        lambda c: nn.Projector(c, 128, query_groups=8),
        lambda c: nn.Projector(c, 128, 256, num_heads=16, query_groups=16),
        lambda c: nn.Projector(c, 128, width=c, query_groups=None),
    ],
)
def test_logits_start_at_order_one(make, channels):
    x, tokens = torch.randn(2, channels, 8, 8), torch.randn(2, 16, 128)
    deviation = logits_of(make(channels), x, tokens).std().item()
    assert 0.6 < deviation < 1.6


def test_token_attention_logits_start_at_order_one():
    module, tokens = nn.TokenTransformer(256, num_heads=4), torch.randn(4, 16, 256)
    keys, queries = (
        layer(tokens).unflatten(2, (4, -1)).transpose(1, 2) for layer in (module.key, module.query)
    )
    deviation = (module.scale * keys @ queries.transpose(-2, -1)).std().item()
    assert 0.6 < deviation < 1.6


def test_tokens_keep_the_scale_of_the_pixels():
    """Value and token convolutions neither blow up nor shrink: pixels all alike, of unit variance."""
    x = torch.randn(64, 256, 1, 1).expand(-1, -1, 4, 4)
    tokens = nn.FilterTokenizer(256, 2, 512, value_groups=4)(x)
    assert tokens.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", CASES)
def test_every_owner_of_parameters_can_reset_them(name):
    """As after `to_empty`, where they hold anything."""
    with torch.device("meta"):
        module = CASES[name]()
    module.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(math.nan)
    for part in module.modules():
        if list(part.parameters(recurse=False)):
            part.reset_parameters()
    assert all(torch.all(parameter.isfinite()) for parameter in module.parameters())
    assert all(torch.all(part.adjacency == 0) for part in module.modules() if isinstance(part, nn.GraphConv))


WITHOUT_PARAMETERS = ("tokenizer: clustering", "tokenizer: pooling", "projector: bare")


@pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_PARAMETERS])
def test_every_parameter_learns(name):
    """Zero-initialised branches wake up: three steps of SGD move every parameter."""
    module = CASES[name]()
    x, tokens = feature_map("contiguous", dtype=torch.float32), incoming(module, dtype=torch.float32)
    before = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}
    assert before
    optimiser = torch.optim.SGD(module.parameters(), lr=0.3)
    weights = None
    for _ in range(3):
        outputs = run(module, x, tokens)
        weights = weights or [torch.randn_like(output) for output in outputs]
        loss = sum((output * weight).mean() for output, weight in zip(outputs, weights, strict=True))
        optimiser.zero_grad()
        loss.backward()
        assert math.isfinite(loss.item())
        optimiser.step()
    still = [key for key, parameter in module.named_parameters() if torch.equal(parameter, before[key])]
    assert not still


def test_five_lines_of_a_user_learn_to_find_a_marked_pixel():
    """A drop-in module and a linear layer tell which of four marks a picture has, anywhere in it."""
    vt = build(16, num_tokens=4)
    head = torch.nn.Linear(16, 4)
    marks = torch.eye(4, 16) * 4
    optimiser = torch.optim.Adam([*vt.parameters(), *head.parameters()], lr=1e-2)

    def batch(size):
        labels, places = torch.randint(4, (size,)), torch.randint(36, (size,))
        x = 0.3 * torch.randn(size, 16, 36)
        x[torch.arange(size), :, places] += marks[labels]
        return x.unflatten(2, (6, 6)), labels

    for _ in range(60):
        x, labels = batch(32)
        loss = torch.nn.functional.cross_entropy(head(vt(x)[1].mean(1)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, labels = batch(200)
    accuracy = (head(vt(x)[1].mean(1)).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.95

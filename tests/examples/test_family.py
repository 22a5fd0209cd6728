"""The layers of examples/family.py, each against its own formula: results and gradients in float64."""

import importlib.util
import inspect

import pytest
import torch

from tests.examples.conftest import EXAMPLES

spec = importlib.util.spec_from_file_location("family", EXAMPLES / "family.py")
family = importlib.util.module_from_spec(spec)
spec.loader.exec_module(family)

B, C, N, L, HEADS, INNER = 2, 8, 15, 4, 2, 6


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def check(function, formula, *arguments, **options):
    """Both give the same, and the same gradients to all floating-point arguments."""
    solutions = []
    for call in (function, formula):
        leaves = [
            value.clone().requires_grad_()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for value in arguments
        ]
        wanted = [value for value in leaves if isinstance(value, torch.Tensor) and value.requires_grad]
        given = {}
        for name, value in options.items():
            if isinstance(value, dict):
                value = {key: each.clone().requires_grad_() for key, each in value.items()}
                wanted += value.values()
            given[name] = value
        result = call(*leaves, **given)
        cotangent = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view(result.shape).cos()
        solutions.append((result, *torch.autograd.grad((result * cotangent).sum(), wanted)))
    for found, expected in zip(*solutions, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("ports", [False, True])
def test_double_attention(ports):
    def formula(x, phi, theta, rho):
        features, pixels = x @ phi.T, x @ theta.T
        gathered = torch.softmax(pixels, 1).mT @ features
        return torch.softmax(x @ rho.T, 1 if ports else 2) @ gathered

    weights = randn(INNER, C), randn(L, C), randn(L, C)
    check(lambda *given: family.double_attention(*given, ports=ports), formula, randn(B, N, C), *weights)


def test_glore():
    def formula(x, nodes, reduce, mix, update, extend):
        projection = x @ nodes.T
        states = projection.mT @ (x @ reduce.T)
        states = torch.relu((states - mix @ states) @ update.T)
        return x + projection @ states @ extend.T

    weights = randn(L, C), randn(INNER, C), randn(L, L), randn(INNER, INNER), randn(C, INNER)
    check(family.glore, formula, randn(B, N, C), *weights)


def test_object_regions():
    def formula(x, scores):
        return torch.softmax(scores.flatten(2), -1) @ x.flatten(2).mT

    check(family.object_regions, formula, randn(B, C, 3, 5), randn(B, L, 3, 5))


def test_physics_attention():
    def formula(x, fx, weight, bias, temperature):
        heads, values = (each.unflatten(2, (HEADS, -1)).transpose(1, 2) for each in (x, fx))
        shares = torch.softmax((heads @ weight.T + bias) / temperature[:, None, None], -1)
        slices = shares.mT @ values / (shares.sum(2)[..., None] + 1e-2)
        return (shares @ slices).transpose(1, 2).flatten(2)

    weights = randn(L, C // HEADS), randn(L), randn(HEADS).abs() + 0.5
    check(family.physics_attention, formula, randn(B, N, C), randn(B, N, C), *weights)


def test_slot_updates():
    def formula(x, slots, query, key, value):
        keys, values = x @ key.T, x @ value.T
        logits = keys @ (slots @ query.T).mT * INNER**-0.5
        attention = torch.softmax(logits, -1) + 1e-3
        attention = attention / attention.sum(1, keepdim=True)
        return attention.mT @ values

    weights = randn(INNER, C), randn(INNER, C), randn(INNER, C)
    check(
        lambda *given: family.slot_updates(*given, eps=1e-3),
        formula,
        randn(B, N, C),
        randn(B, L, C),
        *weights,
    )


def test_netvlad():
    def formula(x, weight, bias, centres):
        assignment = torch.softmax(x @ weight.T + bias, -1)
        residuals = (assignment[..., None] * (x[:, :, None] - centres)).sum(1)
        residuals = residuals / residuals.norm(dim=-1, keepdim=True)
        return residuals.flatten(1) / residuals.flatten(1).norm(dim=-1, keepdim=True)

    check(family.netvlad, formula, randn(B, N, C), randn(L, C), randn(L), randn(L, C))


def test_gated_mil():
    sizes = [4, 7, 1]

    def formula(x, offsets, tanh, gate, weight):
        bags = []
        for bag in x.split(sizes):
            scores = (torch.tanh(bag @ tanh.T) * torch.sigmoid(bag @ gate.T)) @ weight.T
            bags.append(torch.softmax(scores, 0).T @ bag)
        return torch.stack(bags)

    offsets = torch.tensor([0, *sizes]).cumsum(0)
    check(family.gated_mil, formula, randn(12, C), offsets, randn(5, C), randn(5, C), randn(2, 5))


def attend(queries, keys, values, weights):
    """Multi-head cross-attention, as SAM writes it."""
    q, k, v = (
        (each @ weights[name].T).unflatten(2, (HEADS, -1)).transpose(1, 2)
        for each, name in ((queries, "q"), (keys, "k"), (values, "v"))
    )
    attention = torch.softmax(q @ k.mT * (INNER // HEADS) ** -0.5, -1)
    return (attention @ v).transpose(1, 2).flatten(2) @ weights["out"].T


def sam():
    weights = {name: randn(INNER, C) for name in "qkv"} | {"out": randn(C, INNER)}
    return (randn(B, 3, C), randn(B, N, C), randn(B, N, C)), {"weights": weights, "heads": HEADS}


def test_tokens_to_image():
    def formula(tokens, pixels, position, weights, heads):
        return attend(tokens, pixels + position, pixels, weights)

    arguments, options = sam()
    check(family.tokens_to_image, formula, *arguments, **options)


def test_image_to_tokens():
    def formula(tokens, pixels, position, weights, heads):
        return pixels + attend(pixels + position, tokens, tokens, weights)

    arguments, options = sam()
    check(family.image_to_tokens, formula, *arguments, **options)


def test_each_is_short():
    for name, function in inspect.getmembers(family, inspect.isfunction):
        if function.__module__ == "family":
            body = inspect.getsource(function).partition('"""')[2].partition('"""')[2]
            assert len(body.strip().splitlines()) <= 10, name

"""A stack of three modules in float64: the paper's equations one by one, one pass per module, and low rank.

The low-rank form never has an intermediate map: with a linear shortcut S, the map after k modules is
X S + sum of P_j V_j, the weights P_j (B, N, L) of module j's tokens for the pixels times their values V_j.
"""

import itertools

import pytest
import torch

from tests._support.comparing import assert_same
from tests._support.folding import B, N, back, randn, weight
from vt_fast.functional import project, project_tokenize, tokenize
from vt_fast.reference.linear import Projection, linear
from vt_fast.reference.projector import projector
from vt_fast.reference.tokenizers import filter_tokenizer, recurrent_tokenizer
from vt_fast.reference.transformer import transformer

pytestmark = [pytest.mark.on_cpu, pytest.mark.one_backend]
L, CT = 4, 8
WIDTHS = 6, 10, 10, 10  # of the map, before the first module and after each
MODULES = 3


def parameters():
    """x, the first filters and shortcut, and each module's projections, named with the module's number."""
    first, last = WIDTHS[0], WIDTHS[-1]
    operands = {
        "x": randn(B, N, first),
        "filters": weight(L, first),
        "shortcut": weight(last, first),
        "shortcut_bias": randn(last),
    }
    for module, width in enumerate(WIDTHS[:-1]):
        shapes = {
            "token": (CT, width),
            "K": (4, CT),
            "Q": (4, CT),
            "F1": (CT, CT),
            "F2": (CT, CT),
            "query": (6, width),
            "key": (6, CT),
            "value": (last, CT),
        }
        if module:
            shapes["recurrent"] = (width, CT)
        operands |= {f"{name}{module}": weight(*shape) for name, shape in shapes.items()}
        operands |= {f"query_bias{module}": randn(6), f"value_bias{module}": randn(last)}
    return operands


class Module:
    """The projections of one module of the stack."""

    def __init__(self, operands, number):
        token_bias = {"query": operands[f"query_bias{number}"], "value": operands[f"value_bias{number}"]}
        names = ("token", "K", "Q", "F1", "F2", "query", "key", "value", *(("recurrent",) if number else ()))
        self.parts = {name: Projection(operands[f"{name}{number}"], token_bias.get(name)) for name in names}

    def __getattr__(self, name):
        return self.parts[name]

    def transform(self, tokens):
        return transformer(tokens, self.K, self.Q, self.F1, self.F2)

    def finish(self, pooled):
        return self.transform(linear(pooled, self.token))

    def spread(self, tokens):
        """The folded keys, the values, and the folded bias."""
        rows = linear(tokens, self.key)
        return back(rows, self.query.weight), linear(tokens, self.value), rows @ self.query.bias


def modules_of(operands):
    return [Module(operands, number) for number in range(MODULES)]


def paper(x, filters, shortcut, shortcut_bias, **operands):
    first, *later = modules_of(operands)
    tokens = first.transform(filter_tokenizer(x, filters, token=first.token))
    results = [tokens]
    step = Projection(shortcut, shortcut_bias)
    x = projector(x, tokens, first.query, first.key, first.value, shortcut=step)
    for module in later:
        tokens = module.transform(recurrent_tokenizer(x, tokens, module.recurrent, token=module.token))
        results.append(tokens)
        x = projector(x, tokens, module.query, module.key, module.value)
    return x, *results


def one_pass_per_module(x, filters, shortcut, shortcut_bias, **operands):
    modules = modules_of(operands)
    results = [modules[0].finish(tokenize(x, filters))]
    residual = linear(x, Projection(shortcut, shortcut_bias))
    for module, following in itertools.pairwise(modules):
        keys, values, token_bias = module.spread(results[-1])
        queries = linear(results[-1], following.recurrent)
        x, pooled = project_tokenize(x, keys, values, queries, token_bias=token_bias, residual=residual)
        residual = x
        results.append(following.finish(pooled))
    keys, values, token_bias = modules[-1].spread(results[-1])
    return project(x, keys, values, token_bias=token_bias, residual=x), *results


class LowRankMap:
    """The map X S + sum_j P_j V_j, kept as X and P_j side by side and the V_j: it is never formed."""

    def __init__(self, x):
        self.known = x  # (B, N, C + L per module), what the pixels show to a bank of rows
        self.width = x.shape[-1]
        self.shortcut = None
        self.values = []

    def rows(self, bank):
        """Rows for the current map, as rows for what is known of the pixels."""
        first = bank if self.shortcut is None else back(bank, self.shortcut)
        return torch.cat([first, *(bank @ values.mT for values in self.values)], -1)

    def tokenize(self, queries):
        pooled = tokenize(self.known, self.rows(queries))
        of_x, *of_weights = pooled.split([self.width, *[L] * len(self.values)], -1)
        tokens = of_x if self.shortcut is None else of_x @ self.shortcut.T
        return tokens + sum(weights @ values for weights, values in zip(of_weights, self.values, strict=True))

    def add(self, keys, values, token_bias):
        identity = torch.eye(L, dtype=torch.float64)
        weights = project(self.known, self.rows(keys), identity, token_bias=token_bias)
        self.known = torch.cat([self.known, weights], -1)
        self.values.append(values)

    def map(self):
        x, *weights = self.known.split([self.width, *[L] * len(self.values)], -1)
        return x @ self.shortcut.T + sum(p @ v for p, v in zip(weights, self.values, strict=True))


def low_rank(x, filters, shortcut, shortcut_bias, **operands):
    current, results = LowRankMap(x), []
    for number, module in enumerate(modules_of(operands)):
        queries = linear(results[-1], module.recurrent) if number else filters
        results.append(module.finish(current.tokenize(queries)))
        keys, values, token_bias = module.spread(results[-1])
        # a pixel's weights sum to 1, so that the shortcut's bias may join the first values
        current.add(keys, values if number else values + shortcut_bias, token_bias)
        current.shortcut = shortcut
    return current.map(), *results


def test_one_pass_per_module_is_the_paper():
    assert_same(paper, one_pass_per_module, **parameters())


def test_a_stack_of_low_rank_never_needs_its_maps():
    assert_same(paper, low_rank, **parameters())

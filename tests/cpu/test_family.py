"""The op family's switches on every instruction set, in random combinations, against their definitions.

The definitions are written out in float64 here, one bag at a time.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import vt_fast
from tests._support.instruction_sets import each
from tests._support.problems import LAYOUTS, rounded
from vt_fast.testing import peak_bytes

TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 0.02, torch.bfloat16: 0.12}
INF = float("inf")


def logits(x: Tensor, rows: Tensor | None, scores: Tensor | None, bias: Tensor | None, heads: int) -> Tensor:
    """(R, N) of one bag x (N, C). Removed rows get a bias of 0."""
    found = torch.zeros((), dtype=x.dtype)
    if rows is not None:
        blocks = rows.shape[1] != x.shape[1]
        parts = x.unflatten(1, (heads if blocks else 1, -1))
        found = torch.einsum("nhc,hlc->hln", parts, rows.unflatten(0, (parts.shape[1], -1))).flatten(0, 1)
    if scores is not None:
        found = found + scores
    return found if bias is None else found + torch.where(bias == -INF, 0, bias)[:, None]


def over_tokens(found: Tensor, heads: int, removed: Tensor) -> Tensor:
    """The softmax over the rows of each head; 0 for removed rows."""
    groups, gone = found.unflatten(0, (heads, -1)), removed.unflatten(0, (heads, -1))[..., None]
    groups = torch.where(gone & ~gone.all(1, keepdim=True), -INF, groups)
    return torch.where(gone, 0, groups.softmax(1)).flatten(0, 1)


def cleared(value: Tensor | None, gone: Tensor) -> Tensor | None:
    """0 in rows that must not be used."""
    return None if value is None else torch.where(gone[:, None], 0, value)


def removed_rows(rows: Tensor | None, scores: Tensor | None, bias: Tensor | None) -> Tensor:
    count = rows.shape[0] if rows is not None else scores.shape[0]
    return torch.zeros(count, dtype=torch.bool) if bias is None else bias == -INF


def pool(
    x: Tensor,
    rows: Tensor | None,
    values: Tensor | None,
    scores: Tensor | None,
    bias: Tensor | None,
    valid: Tensor,
    pixel_bias: Tensor | None,
    heads: int,
    normalize: str | None,
    eps: float | None,
) -> tuple[Tensor, Tensor]:
    """Tokens and statistics of one bag."""
    gone = removed_rows(rows, scores, bias)
    rows, scores = cleared(rows, gone), cleared(scores, gone)
    x, scores = x[valid], None if scores is None else scores[:, valid]
    if eps is not None:
        x = torch.nn.functional.layer_norm(x, x.shape[1:], eps=eps)
    pooled = x if values is None else values[valid]
    found = logits(x, rows, scores, bias, heads)
    if pixel_bias is not None:
        found = found + pixel_bias[valid]
    blocks = rows is not None and rows.shape[1] != x.shape[1]
    if normalize == "pixels":
        some = x.shape[0] > 0
        weights = found.softmax(1)
        stats = found.logsumexp(1) if some else torch.full(found.shape[:1], -INF, dtype=x.dtype)
        stats = torch.where(gone, -INF, stats)
    else:
        weights = found if normalize is None else over_tokens(found, heads, gone)
        weights = torch.where(gone[:, None], 0, weights)
        stats = weights.sum(1)
    weights = torch.where(gone[:, None], 0, weights)
    if blocks:
        parts = pooled.unflatten(1, (heads, -1))
        tokens = torch.einsum("hln,nhd->lhd", weights.unflatten(0, (heads, -1)), parts).flatten(1)
    else:
        tokens = weights @ pooled
    return tokens, stats


def spread(
    x: Tensor,
    keys: Tensor | None,
    values: Tensor,
    scores: Tensor | None,
    bias: Tensor | None,
    heads: int,
    normalize: str | None,
) -> Tensor:
    """The map of one bag."""
    gone = removed_rows(keys, scores, bias)
    keys, scores = cleared(keys, gone), cleared(scores, gone)
    found = logits(x, keys, scores, bias, heads)
    if normalize == "tokens":
        weights = over_tokens(found, heads, gone)
    else:
        weights = torch.where(gone[:, None], 0, found.exp() if normalize == "exp" else found)
    if values.shape[0] == found.shape[0]:
        return weights.t() @ cleared(values, gone)
    parts = values.unflatten(1, (heads, -1))  # (L, heads, D)
    parts = torch.where(gone.unflatten(0, (heads, -1)).t()[..., None], 0, parts)
    return torch.einsum("hln,lhd->nhd", weights.unflatten(0, (heads, -1)), parts).flatten(1)


def pixels(value: Tensor) -> Tensor:
    return value.flatten(2).transpose(1, 2) if value.dim() == 4 else value


class Problem:
    """Operands of one call in float64, and its options."""

    def __init__(self, op: str, seed: int, large: bool = False) -> None:
        torch.manual_seed(seed)
        draw = random.Random(f"{op}{seed}")
        self.op, self.options = op, {}
        self.heads = heads = draw.choice([1, 2, 3, 4])
        tokens = draw.choice([1, 2, 3, 5, 8, 9, 17, 40])
        height, width = draw.choice([(1, 1), (1, 7), (3, 11), (12, 25), (20, 20)])
        batch = draw.choice([1, 2, 9])
        channels = heads * draw.choice([1, 2, 3, 5, 8, 11, 16, 21])
        if large:  # enough work for several threads
            tokens, height, width, batch = 17, 20, 20, draw.choice([3, 20])
            channels = heads * 21
        layout = draw.choice(list(LAYOUTS))
        out = draw.choice([channels, heads * draw.choice([1, 4, 9, 32])])
        self.dtype = draw.choice(list(TOLERANCES))
        self.bags = None

        def map_of(of):
            return LAYOUTS[draw.choice([layout, layout, *self._alike(layout)])](batch, of, height, width)

        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            self._fill(draw, batch, channels, out, height * width, tokens, layout, map_of)
        finally:
            torch.set_default_dtype(default)

    @staticmethod
    def _alike(layout: str) -> list[str]:
        return [name for name in LAYOUTS if name.startswith("bnc") == layout.startswith("bnc")]

    def _fill(self, draw, batch, channels, out, count, tokens, layout, map_of) -> None:
        heads, rows = self.heads, self.heads * tokens
        x = map_of(channels)
        if layout.startswith("bnc") and draw.random() < 0.5:
            x, batch = self._bags(draw, x), self.bags
        ragged = self.offsets is not None

        def lead():
            return () if draw.random() < 0.4 else (batch,)

        blocks = draw.random() < 0.5
        depth = channels // heads if blocks else channels
        operands: dict[str, Tensor | None] = {"x": x}
        bank = torch.randn(*lead(), rows, depth) * depth**-0.5
        scores = None
        if draw.random() < 0.3:
            scores = torch.randn((rows, x.shape[0]) if ragged else (batch, rows, count))
            if x.dim() == 4 and draw.random() < 0.5:
                scores = scores.unflatten(2, x.shape[2:])
            if draw.random() < 0.5:
                scores = scores.transpose(-1, -2).contiguous().transpose(-1, -2)
            bank = bank if draw.random() < 0.6 else None
        bias = torch.randn(*lead(), rows) if draw.random() < 0.4 else None
        if bias is not None and draw.random() < 0.6:
            bias[..., draw.randrange(rows)] = -INF
            if draw.random() < 0.3:
                bias[..., :tokens] = -INF
        others = ["tokens", "exp", None] if self.op == "project" else ["pixels", "tokens", None]
        normalize = draw.choice([others[0], *others])
        self.options |= {"normalize": normalize}
        if self.op == "project":
            summed = draw.random() < 0.5
            residual = draw.choice([None, "x", "map"])
            out = channels if residual == "x" else out
            value_rows = rows if summed else tokens
            self.operands = operands | {
                "keys": bank,
                "values": torch.randn(*lead(), value_rows, out),
                "token_bias": bias,
                "residual": (torch.randn(x.shape[0], out) if ragged else map_of(out))
                if residual == "map"
                else None,
                "scores": scores,
            }
            self.residual_is_input = residual == "x"
            return
        values = map_of(out) if not ragged and draw.random() < 0.4 else None
        if ragged and draw.random() < 0.3:
            values = torch.randn(x.shape[0], out)
        shape = x.shape[:1] if ragged else (batch, count)
        mask = torch.rand(shape) < 0.7 if draw.random() < 0.4 else None
        if mask is not None and not ragged and draw.random() < 0.4:
            mask[0] = False
        pixel_bias = torch.randn(shape) if draw.random() < 0.3 else None
        if pixel_bias is not None:
            pixel_bias.view(-1)[0] = -INF
        extra = None
        if normalize == "pixels" and heads == 1 and not ragged and draw.random() < 0.3:
            extra = torch.randn(count, draw.choice([1, 3, 40]))
        if normalize == "pixels" and values is None and draw.random() < 0.3:
            self.options["layer_norm_eps"] = 1e-3
        self.operands = operands | {
            "queries": bank,
            "mask": mask,
            "pixel_bias": pixel_bias,
            "extra_values": extra,
            "values": values,
            "scores": scores,
            "token_bias": bias,
        }

    offsets: Tensor | None = None

    def _bags(self, draw: random.Random, x: Tensor) -> Tensor:
        total = x.shape[0] * x.shape[1]
        x = x.reshape(total, x.shape[2]) if draw.random() < 0.5 else x.reshape(total, -1).t().contiguous().t()
        cuts = sorted(draw.choices(range(total + 1), k=draw.choice([0, 1, 4, 30])))
        self.offsets = torch.tensor([0, *cuts, total], dtype=draw.choice([torch.int32, torch.int64]))
        self.bags = len(cuts) + 1
        return x

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """Operands rounded to the dtype."""
        biases = ("token_bias", "pixel_bias", "scores")
        wide = torch.float32 if dtype != torch.float64 else dtype
        return {
            name: None if value is None else rounded(value, wide if name in biases else dtype)
            for name, value in self.operands.items()
        }

    def define(self, operands: dict[str, Tensor | None]) -> list[Tensor]:
        """Results by definition."""
        x = pixels(operands["x"])
        bounds = [(b, 0, x.shape[-2]) for b in range(x.shape[0])]
        if self.offsets is not None:
            cuts = self.offsets.tolist()
            bounds = [(b, *cuts[b : b + 2]) for b in range(self.bags)]

        def cut(name: str, sample: int, begin: int, end: int) -> Tensor | None:
            value = operands.get(name)
            if value is None:
                return None
            if name in ("queries", "keys") or (name == "values" and self.op == "project"):
                return value if value.dim() == 2 else value[sample]
            if name == "token_bias":
                return value if value.dim() == 1 else value[sample]
            ragged = self.offsets is not None
            if name == "scores":
                return value[:, begin:end] if ragged else value[sample].flatten(1)
            if name in ("mask", "pixel_bias"):
                return value[begin:end] if ragged else value[sample]
            return value[begin:end] if ragged else pixels(value)[sample]

        found = []
        for bag in bounds:
            xb = cut("x", *bag)
            if self.op == "project":
                args = [cut(name, *bag) for name in ("keys", "values", "scores", "token_bias")]
                y = spread(xb, *args, self.heads, self.options["normalize"])
                residual = xb if self.residual_is_input else cut("residual", *bag)
                found.append((y if residual is None else y + residual,))
                continue
            valid = torch.ones(xb.shape[0], dtype=torch.bool)
            mask, pixel_bias = cut("mask", *bag), cut("pixel_bias", *bag)
            valid = valid if mask is None else valid & mask
            valid = valid if pixel_bias is None else valid & (pixel_bias != -INF)
            values, extra = cut("values", *bag), operands.get("extra_values")
            if extra is not None:
                values = torch.cat([self._normal(xb) if values is None else values, extra], 1)
            names = ("scores", "token_bias")
            found.append(
                pool(
                    xb,
                    cut("queries", *bag),
                    values,
                    *[cut(name, *bag) for name in names],
                    valid,
                    pixel_bias,
                    self.heads,
                    self.options["normalize"],
                    self.options.get("layer_norm_eps"),
                )
            )
        results = [
            torch.stack(each) if self.offsets is None else list(each) for each in zip(*found, strict=True)
        ]
        if self.op == "project":
            if self.offsets is not None:
                return [torch.cat(results[0])]
            y = results[0]
            return [
                y if operands["x"].dim() == 3 else y.transpose(1, 2).unflatten(2, operands["x"].shape[2:])
            ]
        return [torch.stack(each) if isinstance(each, list) else each for each in results]

    def _normal(self, x: Tensor) -> Tensor:
        eps = self.options.get("layer_norm_eps")
        return x if eps is None else torch.nn.functional.layer_norm(x, x.shape[1:], eps=eps)

    def forward(self, o: dict[str, Tensor | None]) -> tuple[Tensor, ...]:
        """Results of the op; tokens, exact and statistics of tokenize."""
        ops, named = torch.ops.vt_fast, self._named(o)
        if self.op == "project":
            same = self.residual_is_input
            args = (o["x"], o["keys"], o["values"], o["token_bias"], o["residual"], same, self.heads)
            return (ops.project_cpu(*args, **named),)
        args = (o["x"], o["queries"], o["mask"], o["pixel_bias"], o["extra_values"], self.heads, True)
        return ops.tokenize_cpu(*args, **named)

    def backward(self, o: dict[str, Tensor | None], results: Any, grads: list[Tensor]) -> dict[str, Tensor]:
        """Gradients of the op by name."""
        ops, named = torch.ops.vt_fast, self._named(o)

        def needs(names):
            return [o[name] is not None for name in names]

        if self.op == "project":
            names = ["x", "keys", "values", "token_bias", "scores"]
            args = (
                *grads,
                o["x"],
                o["keys"],
                o["values"],
                o["token_bias"],
                self.residual_is_input,
                self.heads,
            )
            found = ops.project_backward_cpu(*args, needs(names), **named)
        else:
            tokens, exact, stats = results
            names = ["x", "queries", "pixel_bias", "extra_values", "values", "scores", "token_bias"]
            exact = exact if exact.numel() or not tokens.numel() else tokens
            args = (*grads, o["x"], o["queries"], o["mask"], o["pixel_bias"], o["extra_values"], exact, stats)
            found = ops.tokenize_backward_cpu(*args, self.heads, needs(names), **named)
        return {name: grad for name, grad in zip(names, found, strict=True) if o[name] is not None}

    def _named(self, o: dict[str, Tensor | None]) -> dict[str, Any]:
        names = ("scores",) if self.op == "project" else ("values", "scores", "token_bias")
        return {name: o[name] for name in names} | {"offsets": self.offsets} | self.options


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, name: str) -> None:
    assert found.shape == expected.shape, f"{name}: {tuple(found.shape)} is not {tuple(expected.shape)}"
    finite = expected[expected.isfinite()]
    size = max(1.0, finite.abs().max().item() if finite.numel() else 0.0)
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=TOLERANCES[dtype] * size, msg=lambda text: f"{name}: {text}"
    )


@pytest.fixture(autouse=True)
def poisoned():
    torch.ops.vt_fast_cpu.poison_results(True)
    yield
    torch.ops.vt_fast_cpu.poison_results(False)


def poison_unused(problem: Problem, operands: dict[str, Tensor | None]) -> None:
    """NaN in masked pixels and removed rows."""
    with torch.no_grad():
        mask = operands.get("mask")
        if mask is not None and operands["x"].dim() < 4:
            for name in ("x", "values"):
                value = operands.get(name)
                if value is not None and 0 not in value.stride():
                    value[~mask] = float("nan")
        bias = operands.get("token_bias")
        for name in ("queries", "keys"):
            rows = operands.get(name)
            if bias is not None and rows is not None and rows.dim() - 1 == bias.dim():
                rows[bias == -INF] = float("nan")


def solve(
    problem: Problem, operands: dict[str, Tensor | None], cotangents: list[Tensor]
) -> dict[str, Tensor]:
    """Results and gradients of the op by name."""
    results = problem.forward(operands)
    named = dict(
        zip(["map"] if problem.op == "project" else ["tokens", "exact", "stats"], results, strict=True)
    )
    named.pop("exact", None)
    grads = [c.to(value.dtype) for c, value in zip(cotangents, named.values(), strict=True)]
    found = problem.backward(operands, results, grads)
    return named | {f"d{name}": grad for name, grad in found.items()}


def detached(operands: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if value is None else value.detach() for name, value in operands.items()}


@pytest.mark.parametrize("seed", range(int(os.environ.get("VT_FAST_FUZZ", "120"))))
@pytest.mark.parametrize("op", ["project", "tokenize"])
def test_switches(op: str, seed: int) -> None:
    problem = Problem(op, seed)
    ours = problem.leaves(problem.dtype)
    exact = {
        name: value if value is None or value.dtype == torch.bool else rounded(value.detach(), torch.float64)
        for name, value in ours.items()
    }
    expected = problem.define(exact)
    cotangents = [torch.randint(-4, 5, each.shape) / 4 for each in expected]
    finite = [torch.where(each.isfinite(), each, 0) for each in expected]
    loss = sum((each * c).sum() for each, c in zip(finite, cotangents, strict=True))
    names = [name for name, value in exact.items() if value is not None and value.dtype != torch.bool]
    gradients = torch.autograd.grad(loss, [exact[name] for name in names], allow_unused=True)
    wanted = dict(zip(["map"] if op == "project" else ["tokens", "stats"], expected, strict=True))
    for name, grad in zip(names, gradients, strict=True):
        if name != "residual":
            wanted[f"d{name}"] = torch.zeros_like(exact[name]) if grad is None else grad
    poison_unused(problem, ours)
    for isa in each():
        found = solve(problem, detached(ours), cotangents)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            close(found[name], value, problem.dtype, f"{name} on {isa}")


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("op", ["project", "tokenize"])
def test_threads_do_not_matter(op: str, seed: int) -> None:
    problem = Problem(op, seed, large=True)
    operands = detached(problem.leaves(problem.dtype))
    kinds = problem.forward(operands)
    shapes = [kinds[0].shape] if op == "project" else [kinds[0].shape, kinds[2].shape]
    cotangents = [torch.randint(-4, 5, shape) / 4 for shape in shapes]
    for isa in each():
        first = None
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found = solve(problem, operands, cotangents)
            first = first or found
            for name, value in found.items():
                bits, others = (each.contiguous().view(torch.uint8) for each in (value, first[name]))
                same = torch.equal(bits, others)
                assert same, f"{name} with {threads} threads on {isa}"


# Bags that several units share, and bags of several chunks that one worker computes.
SIZES = [[5000, 0, 3, 700, 90, 2], [*[300, 0, 900, 2] * 20, 700]]


@pytest.mark.parametrize("sizes", SIZES, ids=["few", "many"])
@pytest.mark.parametrize("lead", [True, False], ids=["per bag", "shared"])
@pytest.mark.parametrize("layout", ["bnc", "bnc, pixels innermost"])
def test_a_bag_does_not_depend_on_the_others(layout: str, lead: bool, sizes: list[int]) -> None:
    torch.manual_seed(0)
    x = LAYOUTS[layout](1, 24, 1, sum(sizes))[0].float()
    bags = len(sizes)
    rows = {
        "queries": torch.randn(bags, 4, 24),
        "values": torch.randn(bags, 4, 24),
        "token_bias": torch.randn(bags, 4),
    }
    cotangents = torch.randn(bags, 4, 24), torch.randn(bags, 4), torch.randn(sum(sizes), 24)

    def solve(bag: slice, pixels: slice, sizes: list[int]) -> list[Tensor]:
        """Results of some bags, then gradients of the operands, those of rows only where they have a bag."""
        own = {name: value[bag if lead else 0].clone().requires_grad_() for name, value in rows.items()}
        part = x[pixels].requires_grad_()
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        queries, values, bias = own.values()
        more = {"token_bias": bias, "offsets": offsets, "backend": "cpu"}
        tokens, lse = vt_fast.tokenize(part, queries, return_stats=True, **more)
        y = vt_fast.project(part, queries, values, **more)
        grads = [cotangents[0][bag], cotangents[1][bag], cotangents[2][pixels]]
        leaves = [part, *own.values()] if lead else [part]
        gradients = torch.autograd.grad([tokens, lse.clamp(min=-100), y], leaves, grads)
        return [tokens, lse, y, *gradients]

    first = None
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        together = solve(slice(None), slice(None), sizes)
        first = first or together
        for found, expected in zip(together, first, strict=True):
            assert torch.equal(found, expected), f"{threads} threads"
    begin = 0
    for bag, size in enumerate(sizes):
        pixels = slice(begin, begin + size)
        alone = solve(slice(bag, bag + 1), pixels, [size])
        of_bag = [slice(bag, bag + 1), slice(bag, bag + 1), pixels, pixels, *[slice(bag, bag + 1)] * 3]
        for found, whole, part in zip(alone, together, of_bag, strict=False):
            assert torch.equal(found, whole[part]), f"bag {bag}"
        begin += size


@pytest.mark.parametrize("op", ["tokenize", "project"])
@pytest.mark.parametrize("lead", [True, False], ids=["per bag", "shared"])
def test_many_bags_of_several_chunks_need_little_memory(op: str, lead: bool, one_thread: None) -> None:
    """The workspace does not grow with the number of bags, each of which is cut into 8 chunks."""
    sizes, channels = 2000, 64
    peaks = []
    for bags in (20, 200):
        x = torch.randn(1, channels).expand(bags * sizes, -1)
        offsets = torch.arange(bags + 1) * sizes
        rows = torch.randn(*((bags,) if lead else ()), 8, channels, requires_grad=True)
        function = vt_fast.tokenize if op == "tokenize" else vt_fast.project
        arguments = (x, rows) if op == "tokenize" else (x, rows, rows)

        def forward():
            return function(*arguments, offsets=offsets, backend="cpu")

        result = forward()
        arriving = torch.ones(1).expand_as(result)
        results = (1 if op == "tokenize" else 2) * rows.nbytes
        peaks.append(
            [
                peak_bytes(lambda: forward().detach()) - result.nbytes,
                peak_bytes(lambda: torch.autograd.grad(result, rows, arriving)) - results,
            ]
        )
    assert all(many <= few + 200_000 for few, many in zip(*peaks, strict=True)), peaks


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("layout", ["bnc", "nchw"])
def test_heads_by_shape_in_project_tokenize(layout: str, dtype: torch.dtype) -> None:
    """Block keys and summed values: what project, then tokenize give."""
    torch.manual_seed(0)
    x = LAYOUTS[layout](2, 24, 5, 7).to(dtype)
    queries = torch.randn(3, 24, dtype=dtype)
    ops = torch.ops.vt_fast
    for keys in (torch.randn(2, 12, 8), torch.randn(12, 24)):
        for values in (torch.randn(12, 24), torch.randn(2, 4, 24)):
            keys, values = (keys / 4).to(dtype), values.to(dtype)
            y = ops.project_cpu(x, keys, values, None, None, True, 3)
            tokens, exact, lse = ops.tokenize_cpu(y, queries, None, None, None, 1, True)
            options = (None, None, None, None, None, True, 3)
            fused = ops.project_tokenize_cpu(x, keys, values, queries, *options, True, True)
            for found, wanted in zip(fused, (y, tokens, exact, lse), strict=True):
                close(found, wanted.double(), dtype, "a result")
            exact = exact if exact.numel() else tokens
            dtokens, dlse = torch.ones_like(tokens), torch.ones_like(lse)
            dy, dqueries = ops.tokenize_backward_cpu(
                dtokens, dlse, y, queries, None, None, None, exact, lse, 1, [True, True, *[False] * 5]
            )[:2]
            dx, dkeys, dvalues = ops.project_backward_cpu(
                dy, x, keys, values, None, True, 3, [True, True, True, False, False]
            )[:3]
            needs = [True, True, True, True, *[False] * 4]
            grads = ops.project_tokenize_backward_cpu(
                None, dtokens, dlse, x, keys, values, queries, *options[:5], exact, lse, True, 3, needs
            )
            for found, wanted in zip(grads, (dx, dkeys, dvalues, dqueries), strict=False):
                close(found, wanted.double(), dtype, "a gradient")


def test_bags_without_pixels_of_another_width():
    """Their maps have no address; rows keep the width of x."""
    x, queries = torch.zeros(0, 8), torch.randn(3, 8, requires_grad=True)
    for width in (4, 40):
        values = torch.zeros(0, width)
        tokens, mass = vt_fast.tokenize(
            x,
            queries,
            values=values,
            offsets=torch.zeros(3, dtype=torch.int64),
            return_stats=True,
            backend="cpu",
        )
        assert tokens.shape == (2, 3, width)
        assert not tokens.any()
        (grad,) = torch.autograd.grad(tokens.sum() + mass.nan_to_num(neginf=0).sum(), queries)
        assert not grad.any()


@pytest.mark.parametrize("pixels", [7, 5000])
@pytest.mark.parametrize("normalize", ["pixels", "tokens"])
def test_scores_of_minus_infinity_and_of_removed_rows(normalize, pixels):
    """A softmax over nothing is 0, and what a removed row would score is not used."""
    torch.manual_seed(0)
    x = torch.randn(2, pixels, 8, requires_grad=True)
    scores = torch.randn(2, 4, pixels)
    scores[0, 0], scores[1, :, 3] = -INF, -INF
    bias = torch.tensor([0.0, 1.0, -INF, 0.0])
    clean, dirty = scores.clone(), scores.clone()
    clean[:, 2], dirty[:, 2] = 0, torch.nan
    results = []
    for given in (clean, dirty):
        given.requires_grad_()
        tokens, stats = vt_fast.tokenize(
            x, scores=given, token_bias=bias, normalize=normalize, return_stats=True, backend="cpu"
        )
        assert tokens.isfinite().all()
        y = vt_fast.project(
            x, None, torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), scores=given,
            token_bias=bias, backend="cpu",
        )  # fmt: skip
        total = tokens.sum() + y.sum() + stats.nan_to_num(neginf=0).sum()
        results.append((tokens, y, *torch.autograd.grad(total, (x, given))))
    for found, expected in zip(*results, strict=True):
        assert found.isfinite().all()
        assert torch.equal(found, expected)
    if normalize == "pixels":
        assert not results[0][0][0, 0].any()


@pytest.mark.parametrize("eps", [0.0, -1.0, INF, float("nan")])
def test_eps_of_layer_norm(eps):
    with pytest.raises(ValueError, match="layer_norm_eps"):
        vt_fast.tokenize(torch.randn(2, 7, 8), torch.randn(3, 8), layer_norm_eps=eps, backend="cpu")

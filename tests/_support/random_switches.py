"""Random combinations of the op family's switches, on the CPU kernels and by definition."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from tests._support.definitions import INF, pool, spread
from tests._support.instruction_sets import each
from tests._support.problems import LAYOUTS, rounded

TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 0.02, torch.bfloat16: 0.12}


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
        self.wide_biases = draw.random() < 0.7
        self.unneeded = {name for name in self.operands if draw.random() < 0.2}

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
        wide = torch.promote_types(dtype, torch.float32) if self.wide_biases else dtype
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
        """The gradients of the op that are needed, by name."""
        ops, named = torch.ops.vt_fast, self._named(o)

        def needs(names):
            return [o[name] is not None and name not in self.unneeded for name in names]

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
        wanted = [name for name, needed in zip(names, needs(names), strict=True) if needed]
        assert [name for name, grad in zip(names, found, strict=True) if grad is not None] == wanted
        return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}

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


def check(problem: Problem, threads: int = 1) -> None:
    """Raise unless results and gradients are right on each instruction set."""
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
    wanted = dict(zip(["map"] if problem.op == "project" else ["tokens", "stats"], expected, strict=True))
    for name, grad in zip(names, gradients, strict=True):
        if name != "residual" and name not in problem.unneeded:
            wanted[f"d{name}"] = torch.zeros_like(exact[name]) if grad is None else grad
    poison_unused(problem, ours)
    torch.set_num_threads(threads)
    for isa in each():
        found = solve(problem, detached(ours), cotangents)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            close(found[name], value, problem.dtype, f"{name} on {isa}")

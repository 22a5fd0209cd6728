"""``python -m benchmarks switches``: each switch of the ops at the shapes of real layers.

The floor is that of the ops alone. Sides, where they apply:

- ``plain``: plain PyTorch with weights (N, R); ``transposed``: with weights (R, N). ``sdpa``: by PyTorch's
  fused attention. ``compile plain``: on request, since compiling takes longer than all the rest.
- ``original``, ``original sdpa``: the layer as published, which projects the pixels.
- For bags, ``plain`` is a loop over them; ``padded``: a batch with a mask; ``scatter``: as PyG writes it.
- ``no switch``: our ops without it, for as many FLOPs and bytes. They compute something else.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import networks
from benchmarks.attention import sdpa
from benchmarks.devices import Device
from benchmarks.modules import VT_FAST, Comparison, Function, ModuleProblem, Shapes, Side
from benchmarks.processes import Plan
from benchmarks.results import OURS, PEER, REPLACED
from benchmarks.roofline import Work, op_work
from benchmarks.shapes import DTYPES, PASSES
from benchmarks.timing import Budget
from vt_fast import project, tokenize

MODE = "switches"
_COMPILED, _BASE = "compile plain", "no switch"
PEERS = ("plain", "transposed", "sdpa", "original", "original sdpa", "padded", "scatter", _BASE)
_BUDGET = Budget(few=5, patience=5.0)
# Maps moved beside those of an op without a switch: reads and writes, forward and backward.
_VALUES, _RESIDUAL = ((1, 0), (1, 1)), ((1, 0), (0, 0))
# Bags of 200 to 10 000 patches; and graphs of some 25 nodes.
_SLIDES, _GRAPHS = [int(200 * 1.3**n) for n in range(16)], [10 + 7 * n % 31 for n in range(512)]

Row: TypeAlias = tuple[str, Comparison]
Size: TypeAlias = tuple[int, ...]


class _Form(NamedTuple):
    """The ops in plain PyTorch: maps (..., N, C), weights (..., N, R) or transposed, rows that are scaled."""

    transposed: bool

    def logits(self, x: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        found = rows @ x.mT if self.transposed else x @ rows.mT
        return found if bias is None else found + bias.unsqueeze(-1 if self.transposed else -2)

    def shares(self, x: Tensor, rows: Tensor, bias: Tensor | None = None, heads: int = 1) -> Any:
        axis = -2 if self.transposed else -1
        logits = self.logits(x, rows, bias).unflatten(axis, (heads, -1))
        return logits.softmax(axis).flatten(axis - 1, axis)

    def attend(self, x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        return self.pool(self.logits(x, rows).softmax(-1 if self.transposed else -2), values)[0]

    def pool(self, weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        weights = weights if self.transposed else weights.mT
        return weights @ values, weights.sum(-1)

    def spread(self, weights: Tensor, values: Tensor) -> Tensor:
        return (values.mT @ weights).mT if self.transposed else weights @ values


def _row(
    title: str,
    inputs: Shapes,
    floors: Sequence[tuple[Any, ...]],
    ours: Function,
    base: Function | None = None,
    by_form: Function | None = None,
    **peers: Function,
) -> Row:
    """The title, and the sides. All take the operands, ``by_form`` a form before them.

    ``floors``: the ops, their products in multiples of 2 N C, and maps moved beside theirs, if any.
    """
    x = inputs[0]
    batch, pixels, channels = x if len(x) == 3 else (x[0], x[2] * x[3], x[1])
    if by_form is not None:
        forms = {"plain": _Form(False), "transposed": _Form(True)}
        peers = {**{name: partial(by_form, form) for name, form in forms.items()}, **peers}
    sides = {name.replace("_", " "): _side(function) for name, function in peers.items()}
    sides[_COMPILED] = sides["plain"]._replace(compiled="")
    if base is not None:
        sides[_BASE] = _side(base, REPLACED)

    def work(which: str, itemsize: int) -> list[Work]:
        each = (
            op_work(op, which, batch, pixels, channels, count, itemsize, *more) for op, count, *more in floors
        )
        return [work for works in each for work in works]

    return title, Comparison({**sides, VT_FAST: _side(ours, OURS)}, inputs, work=work)


def _side(function: Function, role: str = PEER) -> Side:
    return Side(nn.Identity, lambda host, *given: function(*given), role=role)


def _pixels(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def _map(pixels: Tensor, like: Tensor) -> Any:
    return pixels.mT.unflatten(2, like.shape[2:])


def _heads(x: Tensor, count: int) -> Any:
    return x.unflatten(-1, (count, -1)).transpose(-3, -2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, fused: bool = True) -> Tensor:
    if fused:
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return torch.softmax(queries @ keys.mT, -1) @ values


def _fused(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return sdpa()(rows.expand(x.shape[0], -1, -1), x, values)


def _sam(x: Size, *, pooling: bool) -> Row:
    """SAM's cross-attention: 7 tokens, 8 heads, inner width 128. x has a position, v has none."""
    count, heads, inner = 7, 8, 128
    scale = (inner // heads * x[2]) ** -0.5  # logits of order one

    def absorb(tokens: Tensor, weight: Tensor) -> Tensor:
        each, weight = tokens.unflatten(2, (heads, -1)), weight.unflatten(0, (heads, -1))
        return torch.einsum("blhd,hdc->bhlc", each, weight).flatten(1, 2)

    def pool(by: Function, x: Any, v: Any, tokens: Any, key: Any, value: Any) -> Any:
        pooled = by(x, scale * absorb(tokens, key), v).unflatten(1, (heads, -1))
        return torch.einsum("bhlc,hdc->blhd", pooled, value.unflatten(0, (heads, -1))).flatten(2)

    def spread(x: Any, v: Any, tokens: Any, query: Any, out: Any, split: int = heads) -> Any:
        keys, values = absorb(tokens, query), absorb(tokens, out)
        return project(x, keys, values, num_heads=split, scale=scale, residual=v)

    def folded(form: _Form, x: Any, v: Any, tokens: Any, query: Any, out: Any) -> Any:
        weights = form.shares(x, scale * absorb(tokens, query), None, heads)
        return v + form.spread(weights, absorb(tokens, out))

    def original(fused: bool, x: Any, v: Any, tokens: Any, first: Any, second: Any) -> Any:
        maps, small = _heads(x @ (scale * first).mT, heads), _heads(tokens, heads)
        if pooling:
            return _joined(_attention(small, maps, _heads(v @ second.mT, heads), fused))
        return v + _joined(_attention(maps, small, small, fused)) @ second

    inputs, rows = (x, x, (x[0], count, inner), (inner, x[2]), (inner, x[2])), heads * count
    peers = {"original": partial(original, False), "original_sdpa": partial(original, True)}
    if not pooling:
        floors, base = [("project", rows, _RESIDUAL)], partial(spread, split=1)
        return _row("summed values: SAM, image to tokens", inputs, floors, spread, base, folded, **peers)
    return _row(
        "values=: SAM, tokens to image",
        inputs,
        [("tokenize", rows, _VALUES)],
        partial(pool, lambda x, rows, v: tokenize(x, rows, values=v)),
        by_form=lambda form, *given: pool(form.attend, *given),
        sdpa=partial(pool, _fused),
        **peers,
    )


def _transolver(x: Size, count: int) -> Row:
    """Slice and deslice, whose weights plain PyTorch keeps, without the attention among slices in between."""
    heads = 8
    scale = (x[2] // heads) ** -0.5

    def ours(x: Any, v: Any, rows: Any, bias: Any) -> Any:
        shared = {"num_heads": heads, "scale": scale, "token_bias": bias}
        sums, mass = tokenize(x, rows, values=v, normalize="tokens", return_stats=True, **shared)
        share = mass.unflatten(1, (heads, -1, 1)).to(x.dtype) + 1e-2
        return project(x, rows, _joined(_heads(sums, heads) / share), **shared)

    def base(x: Any, v: Any, rows: Any, bias: Any) -> Any:
        rows = scale * rows.view(count, -1)
        return project(x, rows, tokenize(x, rows, values=v))

    def plain(form: _Form, x: Any, v: Any, rows: Any, bias: Any) -> Any:
        rows, bias = (each.unflatten(0, (heads, -1)) for each in (scale * rows, bias))
        weights = form.shares(_heads(x, heads), rows, bias)
        sums, mass = form.pool(weights, _heads(v, heads))
        return _joined(form.spread(weights, sums / (mass[..., None] + 1e-2)))

    inputs = (x, x, (heads * count, x[2] // heads), (heads * count,))
    floors = [("tokenize", count, _VALUES), ("project", count)]
    title = f'normalize="tokens", block keys: Transolver, {count} slices'
    return _row(title, inputs, floors, ours, base, plain)


def _flare(x: Size) -> Row:
    """Pixels attend to 64 latents, each head in its own channels."""
    heads, scale = 8, 32**-0.5

    def by(attend: Function, x: Any, keys: Any, values: Any) -> Any:
        rows = keys.unflatten(0, (1, heads, -1))
        return _joined(attend(_heads(x, heads), scale * rows, _heads(values, heads)))

    def plain(form: _Form, *given: Any) -> Any:
        return by(lambda x, rows, values: form.spread(form.shares(x, rows), values), *given)

    def base(x: Any, keys: Any, values: Any) -> Any:
        return project(x, keys.view(64, -1), values, scale=1 / 16)

    inputs, ours = (x, (heads * 64, 32), (1, 64, x[2])), partial(project, num_heads=heads, scale=scale)
    fused, floors = partial(by, _attention), [("project", 64)]
    return _row("block keys: FLARE, decoder", inputs, floors, ours, base, plain, sdpa=fused)


def _bags(title: str, lengths: Sequence[int], channels: int, *, scored: bool = False) -> Row:
    """Bags by one query, or by scores."""
    total, scale, bags, sizes = sum(lengths), channels**-0.5, len(lengths), torch.tensor(lengths)
    offsets, bag = F.pad(sizes.cumsum(0), (1, 0)), torch.arange(bags).repeat_interleave(sizes)
    beyond = torch.arange(max(lengths)) >= sizes[:, None]
    places = (~beyond).flatten().nonzero()[:, 0]

    def ours(x: Any, given: Any) -> Any:
        named = {"scores": given} if scored else {"queries": given, "scale": scale}
        return tokenize(x.squeeze(0), offsets=offsets, **named)

    def logits(x: Tensor, given: Tensor) -> Tensor:
        return given[0] if scored else x.squeeze(0) @ (scale * given[0])

    def loop(x: Any, given: Any) -> Any:
        each = zip(logits(x, given).split(lengths), x.squeeze(0).split(lengths), strict=True)
        return torch.stack([torch.softmax(some, 0)[None] @ pixels for some, pixels in each])

    def pad(value: Tensor) -> Tensor:  # pad_sequence has a backward that takes minutes
        found = value.new_zeros(beyond.numel(), *value.shape[1:])
        return found.index_copy(0, places, value).view(*beyond.shape, *value.shape[1:])

    def padded(x: Any, given: Any) -> Any:
        weights = torch.softmax(pad(logits(x, given)).masked_fill(beyond, -math.inf), 1)
        return weights[:, None] @ pad(x.squeeze(0))

    def scatter(x: Any, given: Any) -> Any:
        some, zeros = logits(x, given), x.new_zeros(bags)
        largest = zeros.scatter_reduce(0, bag, some.detach(), "amax", include_self=False)
        weights = torch.exp(some - largest[bag])
        weights = weights / zeros.index_add(0, bag, weights)[bag]
        return x.new_zeros(bags, channels).index_add(0, bag, weights[:, None] * x.squeeze(0))[:, None]

    inputs, share = ((1, total, channels), (1, total if scored else channels)), 1 / channels
    floor = ("tokenize", 0.5, ((share, 0), (share, share))) if scored else ("tokenize", 1)
    base = None if scored else partial(tokenize, scale=scale)
    peers = {"plain": loop, "padded": padded, "scatter": scatter}
    return _row(f"{title}, {bags} bags", inputs, [floor], ours, base, **peers)


def switches(quick: bool = False) -> dict[str, Row]:
    """All by name; in a quick run they have fewer pixels."""

    def few(*shape: int) -> Size:
        small = (shape[1], 5, 6) if len(shape) == 4 else (30, shape[2])
        return (min(shape[0], 2), *small) if quick else shape

    def normed(x: Any, rows: Any, by: Function) -> Any:
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return by(x, rows / 32, x)

    def glore(x: Any, nodes: Any, first: Any = None, second: Any = None) -> Any:
        tokens = tokenize(x, nodes, scale=scale, normalize=first)
        return project(x, nodes, tokens, scale=scale, residual=x, normalize=second)

    def kept(form: _Form, x: Any, nodes: Any) -> Any:
        weights = form.logits(_pixels(x), scale * nodes)
        return x + _map(form.spread(weights, form.pool(weights, _pixels(x))[0]), x)

    def vlad(x: Any, rows: Any, bias: Any, **options: Any) -> Any:
        return tokenize(x, rows, scale=scale, **options, token_bias=bias if options else None)

    def spread(x: Any, rows: Any, values: Any, bias: Any, normalize: str = "exp") -> Any:
        return project(x, rows, values, token_bias=bias, scale=scale, normalize=normalize)

    def spread_plain(form: _Form, x: Any, rows: Any, values: Any, bias: Any) -> Any:
        return _map(form.spread(form.logits(_pixels(x), scale * rows, bias).exp(), values), x)

    sam, step, probe, scale = few(8, 64 * 64, 256), few(16, 128 * 128, 64), few(8, 2048, 1024), 512**-0.5
    conv, gather, images = few(32, 512, 28, 28), few(1, 512, 128, 256), few(24, 512, 30, 40)
    slides, graphs = ([5, 1, 7, 3],) * 2 if quick else (_SLIDES, _GRAPHS)
    tokens: dict[str, Any] = {"normalize": "tokens", "return_stats": True}
    return {
        "values": _sam(sam, pooling=True),
        "sums": _sam(sam, pooling=False),
        "blocks": _flare(few(1, 32186, 256)),
        "slices": _transolver(few(1, 32186, 256), 32),
        "slices-512": _transolver(few(1, 11271, 256), 512),
        "slots": _row(
            'normalize="tokens": slot attention, a step',
            (step, (step[0], 7, 64)),
            [("tokenize", 7)],
            partial(tokenize, scale=1 / 8, **tokens),
            partial(tokenize, scale=1 / 8),
            lambda form, x, slots: form.pool(form.shares(x, slots / 8), x),
        ),
        "vlad": _row(
            'normalize="tokens", token_bias=: NetVLAD',
            (images, (64, 512), (64,)),
            [("tokenize", 64)],
            partial(vlad, **tokens),
            vlad,
            lambda form, x, rows, bias: form.pool(form.shares(_pixels(x), scale * rows, bias), _pixels(x)),
        ),
        "exp": _row(
            'normalize="exp": A2-Net, spreading',
            (conv, (128, 512), (conv[0], 128, 512), (conv[0], 128)),
            [("project", 128)],
            spread,
            partial(spread, normalize="tokens"),
            spread_plain,
        ),
        "linear": _row(
            "normalize=None: GloRe",
            (few(2, 512, 96, 96), (64, 512)),
            [("tokenize", 64), ("project", 64)],
            glore,
            partial(glore, first="pixels", second="tokens"),
            kept,
        ),
        "scores": _row(
            "scores=: OCR, gather",
            (gather, (1, 19, *gather[2:])),
            [("tokenize", 19 / 2, ((19 / 512, 0), (19 / 512, 19 / 512)))],
            lambda x, scores: tokenize(x, scores=scores),
            plain=lambda x, scores: torch.softmax(scores.flatten(2), -1) @ _pixels(x),
        ),
        "norm": _row(
            "layer_norm_eps=: V-JEPA 2, probe",
            (probe, (16, 1024)),
            [("tokenize", 16)],
            partial(tokenize, scale=1 / 32, layer_norm_eps=1e-6),
            partial(tokenize, scale=1 / 32),
            lambda form, x, rows: normed(x, rows, form.attend),
            sdpa=partial(normed, by=_fused),
        ),
        "bags": _bags("offsets=: MIL", slides, 512),
        "graphs": _bags("offsets=: graphs", graphs, 128),
        "gated": _bags("offsets=, scores=: gated MIL", slides, 512, scored=True),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The mode's options."""
    names = list(switches(quick=True))
    parser.add_argument("--switch", nargs="+", choices=names, default=names)
    networks.add_common_arguments(parser, PASSES, (*PEERS, _COMPILED))
    parser.set_defaults(dtype=list(DTYPES), peers=list(PEERS))


def plans(options: argparse.Namespace) -> list[Plan]:
    """One process measures all switches."""
    return networks.plan(options, "switch", [{"switch": name} for name in options.switch], _BUDGET)


def problem(spec: dict[str, Any], device: Device) -> ModuleProblem:
    """A switch as :mod:`benchmarks.runner` measures it."""
    title, comparison = switches(spec["quick"])[spec["switch"]]
    shape = comparison.inputs[0]
    spec = {**spec, "layout": "nchw" if len(shape) == 4 else ""}
    return ModuleProblem(comparison, MODE, title, "x".join(map(str, shape)), spec, device)

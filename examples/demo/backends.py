"""Each available backend against plain eager code: errors, times and memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from demo.tables import table
from demo.timing import interleaved_medians
from vt_fast import backends, functional
from vt_fast.nn import VisualTransformerStack, set_backend
from vt_fast.reference.projector import projector
from vt_fast.reference.tokenizers import filter_tokenizer
from vt_fast.testing import peak_bytes

EAGER = "eager"
_STACK = "stack of two"
_SHAPES = ((8, 196, 256, 16), (2, 3136, 256, 16))
_QUICK_SHAPES = ((2, 12, 16, 4),)

Results = tuple[Tensor, ...]
Op = Callable[..., Results]


class Case(NamedTuple):
    """One op, its inputs (the map first; all require gradients) and the implementations to compare."""

    op: str
    inputs: list[Tensor]
    codes: dict[str, Op]


class Line(NamedTuple):
    """One line of the table. Errors are relative to the largest value, memory is in multiples of the map."""

    op: str
    shape: tuple[int, int, int, int]
    code: str
    error: float
    gradient_error: float
    forward: float
    both: float
    forward_peak: float
    both_peak: float


def measure(*, quick: bool = False) -> list[Line]:
    """Measure every op and shape with the paper as written under autograd ("eager") and with each backend."""
    lines: list[Line] = []
    shapes = _QUICK_SHAPES if quick else _SHAPES
    with tqdm(total=4 * len(shapes), desc="measuring", unit="op", dynamic_ncols=True) as bar:
        for shape in shapes:
            for case in _cases(shape):
                lines += _compare(case, shape, seconds=0.0 if quick else 1.5)
                bar.update()
    return lines


def report(lines: list[Line]) -> str:
    """The lines as a table, with an explanation of its columns."""
    head = ["op", "BxNxCxL", "code", "error", "gradient\nerror"]
    head += ["forward\n(ms)", "fwd + bwd\n(ms)", "peak fwd\n(maps)", "peak fwd\n+ bwd\n(maps)"]
    rows = [
        [
            line.op,
            "x".join(map(str, line.shape)),
            line.code,
            f"{line.error:.1e}",
            f"{line.gradient_error:.1e}",
            f"{1e3 * line.forward:.2f}",
            f"{1e3 * line.both:.2f}",
            f"{line.forward_peak:.2f}",
            f"{line.both_peak:.2f}",
        ]
        for line in lines
    ]
    group = min(64, lines[0].shape[2])
    return table(
        head,
        rows,
        f'float32, {torch.get_num_threads()} thread. "{EAGER}": the paper as written, under autograd. '
        "Errors: the largest error against float64, divided by the largest value.",
        "Times: medians of interleaved runs. Peak: memory allocated beyond the inputs, results included; "
        "1 map is the size of x.",
        f"Stack of two: Visual Transformers with the paper's 1x1 projections in groups of {group} channels.",
        *_verdicts(lines),
    )


def _verdicts(lines: list[Line]) -> Iterator[str]:
    """A sentence for each backend: time and memory of forward + backward, relative to eager."""
    eager = {(line.op, line.shape): line for line in lines if line.code == EAGER}
    for code in dict.fromkeys(line.code for line in lines if line.code != EAGER):
        parts = []
        for where, stack in (("single ops", False), ("the stack", True)):
            own = [line for line in lines if line.code == code and (line.op == _STACK) is stack]
            others = [eager[line.op, line.shape] for line in own]
            times = [line.both / other.both for line, other in zip(own, others, strict=True)]
            peaks = [line.both_peak / other.both_peak for line, other in zip(own, others, strict=True)]
            time_range, peak_range = (f"{min(v):.2f} to {max(v):.2f} times" for v in (times, peaks))
            parts.append(f"on {where} {time_range} the time and {peak_range} the memory of eager")
        yield f'Forward + backward, "{code}" takes {parts[0]}, and {parts[1]}.'


def _cases(shape: tuple[int, int, int, int]) -> Iterator[Case]:
    batch, pixels, channels, count = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, pixels, channels, generator=generator)
    # Logits of order one, as in a trained network.
    tokens = torch.randn(batch, count, channels, generator=generator) / channels**0.5
    queries = torch.randn(count, channels, generator=generator) / channels**0.5
    usable = [name for name, reason in backends.report() if reason is None]

    def plain_tokenize(x: Tensor, queries: Tensor) -> Results:
        return (filter_tokenizer(x, queries),)

    def plain_project(x: Tensor, tokens: Tensor) -> Results:
        return (projector(x, tokens, None, None, None),)

    def plain_both(x: Tensor, tokens: Tensor, queries: Tensor) -> Results:
        y = projector(x, tokens, None, None, None)
        return y, filter_tokenizer(y, queries)

    yield Case("tokenize", [x, queries], {EAGER: plain_tokenize, **{b: _tokenize(b) for b in usable}})
    yield Case("project", [x, tokens], {EAGER: plain_project, **{b: _project(b) for b in usable}})
    yield Case(
        "project_tokenize",
        [x, tokens, queries],
        {EAGER: plain_both, **{b: _project_tokenize(b) for b in usable}},
    )
    yield _stack(x, count, generator, usable)


def _tokenize(backend: str) -> Op:
    return lambda x, queries: (functional.tokenize(x, queries, backend=backend),)


def _project(backend: str) -> Op:
    return lambda x, tokens: (functional.project(x, tokens, tokens, residual=x, backend=backend),)


def _project_tokenize(backend: str) -> Op:
    def run(x: Tensor, tokens: Tensor, queries: Tensor) -> Results:
        y, pooled = functional.project_tokenize(x, tokens, tokens, queries, residual=x, backend=backend)
        return (pooled,) if y is None else (y, pooled)

    return run


def _stack(x: Tensor, count: int, generator: torch.Generator, usable: list[str]) -> Case:
    """Two modules with the paper's 1x1 projections of the pixels, which folding moves to the tokens."""
    channels = x.shape[2]
    stack = VisualTransformerStack(channels, 2, num_tokens=count, group_width=min(64, channels))
    names = [name for name, _ in stack.named_parameters()]
    # Residual branches start at zero, which would hide errors.
    weights = [
        torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        for parameter in stack.parameters()
    ]

    def code(backend: str) -> Op:
        chosen = copy.deepcopy(stack)
        set_backend(chosen, backend)

        def run(x: Tensor, *weights: Tensor) -> Results:
            y, tokens = functional_call(chosen, dict(zip(names, weights, strict=True)), (x,))
            return y, tokens

        return run

    return Case(_STACK, [x, *weights], {EAGER: code("reference"), **{b: code(b) for b in usable}})


def _compare(case: Case, shape: tuple[int, int, int, int], *, seconds: float) -> Iterator[Line]:
    exact = [tensor.double() for tensor in case.inputs]
    with torch.no_grad():
        results = case.codes[EAGER](*exact)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(result.shape, generator=generator) for result in results]

    def forward(code: Op) -> Callable[[], Results]:
        def run() -> Results:
            with torch.no_grad():
                return code(*case.inputs)

        return run

    def both(code: Op, inputs: list[Tensor]) -> Callable[[], Results]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        given = [cotangent.to(inputs[0].dtype) for cotangent in cotangents]
        return lambda: torch.autograd.grad(code(*leaves), leaves, given)

    gradients = both(case.codes[EAGER], exact)()
    forwards = {name: forward(code) for name, code in case.codes.items()}
    boths = {name: both(code, case.inputs) for name, code in case.codes.items()}
    forward_seconds = _medians(forwards, seconds)
    both_seconds = _medians(boths, seconds)
    size = case.inputs[0].numel() * case.inputs[0].element_size()
    for name in case.codes:
        yield Line(
            op=case.op,
            shape=shape,
            code=name,
            error=_error(forwards[name](), results),
            gradient_error=_error(boths[name](), gradients),
            forward=forward_seconds[name],
            both=both_seconds[name],
            forward_peak=peak_bytes(forwards[name]) / size,
            both_peak=peak_bytes(boths[name]) / size,
        )


def _medians(functions: dict[str, Callable[[], Results]], seconds: float) -> dict[str, float]:
    """Medians over about as many rounds as fit into `seconds`, between 5 and 50."""
    for function in functions.values():
        function()  # the first call allocates memory and starts threads
    start = time.perf_counter()
    for function in functions.values():
        function()
    rounds = int(seconds / (time.perf_counter() - start))
    return interleaved_medians(functions, min(max(rounds, 5), 50))


def _error(found: Results, expected: Results) -> float:
    """The largest error of all results, divided by the largest value of all results.

    Not relative to each result: some gradients of a stack almost vanish, and their rounding does not matter.
    """
    errors = [float((have.double() - want).abs().max()) for have, want in zip(found, expected, strict=True)]
    return max(errors) / max(float(want.abs().max()) for want in expected)

"""Ops, maps in chunks, and stacks of modules as problems for :mod:`benchmarks.runner`."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import check, memory, peers, roofline
from benchmarks.check import Gate, Judgement, Truth
from benchmarks.devices import Device, reset_compiler
from benchmarks.inputs import DTYPES, Size, draw, lay_out, sizes
from benchmarks.modules import Comparison, ModuleProblem, Side
from benchmarks.peers import Entrant
from benchmarks.shapes import FORWARD, PASSES, STACK, Case
from vt_fast.nn import VisualTransformerStack, set_backend


def problem(spec: dict[str, Any], device: Device) -> OpProblem | ModuleProblem:
    """By a :meth:`benchmarks.shapes.Case.spec`."""
    case = Case.of(spec)
    if case.op != STACK:
        return OpProblem(case, device.torch_device, spec["peers"], spec["passes"])
    backends = peers.usable_backends(device.torch_device)
    made = partial(_stack, case, "reference")
    sides = {"eager": Side(made)}
    if case.parts == 1 and case.shape.channels <= 64:
        sides["folded"] = Side(made, _folded)
    sides |= {
        f"vt_fast {name}": Side(partial(_stack, case, name), role=role) for name, role in backends.items()
    }
    batch, height, width, channels, _ = case.shape
    comparison = Comparison(sides, [(batch, channels, height, width)])
    spec = {**spec, "quick": False, "dtype": case.dtype, "layout": case.layout}
    return ModuleProblem(comparison, STACK, case.job, case.shape.label, spec, device)


def _stack(case: Case, backend: str) -> nn.Module:
    """Three modules or so, whose value and key convolutions are in groups of 64 channels."""
    channels = case.shape.channels
    width = min(64, channels)
    stack = VisualTransformerStack(channels, case.parts or 3, num_tokens=case.shape.tokens, group_width=width)
    set_backend(stack, backend)
    return stack


@functools.lru_cache(maxsize=4)  # to look them up takes as long as a small call
def _parameters(stack: nn.Module) -> dict[str, nn.Parameter]:
    return {name.removeprefix("blocks.0."): value for name, value in stack.named_parameters()}


def _folded(stack: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A stack of one by hand: its folded algebra in plain PyTorch, for one group of channels."""
    given, channels = _parameters(stack), x.shape[1]

    def linear(rows: Tensor, name: str) -> Tensor:
        return F.linear(rows, given[f"{name}.weight"], given.get(f"{name}.bias"))

    pixels = x.flatten(2).transpose(1, 2)
    filters = channels**-0.5 * given["tokenizer.filters"]
    pooled = torch.softmax(pixels @ filters.T, 1).transpose(1, 2) @ pixels
    tokens = linear(linear(pooled, "tokenizer.value"), "tokenizer.token")
    norm = "transformer.token_norm"
    tokens = F.layer_norm(tokens, (channels,), given[f"{norm}.weight"], given[f"{norm}.bias"])
    keys, queries = linear(tokens, "transformer.key"), linear(tokens, "transformer.query")
    logits = (channels // 2) ** -0.5 * (keys @ queries.transpose(1, 2))
    tokens = tokens + torch.softmax(logits, 2) @ linear(tokens, "transformer.value")
    tokens = tokens + linear(F.relu(linear(tokens, "transformer.first")), "transformer.second")
    rows = channels**-0.5 * linear(tokens, "projector.key")
    keys = rows @ given["projector.query.weight"]
    logits = pixels @ keys.transpose(1, 2) + (rows @ given["projector.query.bias"])[:, None]
    y = pixels + torch.softmax(logits, 2) @ linear(tokens, "projector.value")
    return y.transpose(1, 2).unflatten(2, x.shape[2:]), tokens


@dataclass(frozen=True)
class _Numbers:
    """Operands and gradients that arrive; maps are (B, N, C)."""

    op: str
    operands: dict[str, Tensor]
    arriving: dict[str, Tensor]

    @functools.cached_property
    def truth(self) -> Truth:
        """In float64, on the first use."""
        return check.solve(self.op, self.operands, self.arriving)


_kept: dict[Case, _Numbers] = {}


def _numbers(case: Case, device: torch.device) -> _Numbers:
    """Those of the last case are kept, because both layouts and all chunks have the same."""
    key = case._replace(layout="", parts=None)
    if key not in _kept:
        _kept.clear()  # the old ones must go before the new ones come
        _kept[key] = _Numbers(case.op, *draw(case, device))
    return _kept[key]


class OpProblem:
    """A case, laid out in memory by its first call; see :class:`benchmarks.runner.Problem`.

    ``judged``: False where :meth:`judge` is not called, and the float64 truth not computed.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        wanted: Sequence[str] | None = None,
        passes: Sequence[str] = PASSES,
        *,
        judged: bool = True,
    ) -> None:
        reset_compiler()
        self._judged = judged
        self.case, self.passes, self.label = case, passes, case.label
        self.fields = {"mode": "ops", **case.fields}
        self.contenders: Sequence[Entrant] = peers.entrants(case, wanted, device)
        self._device, self._itemsize = device, DTYPES[case.dtype].itemsize
        self._given, self._results = sizes(case)
        self.map_bytes = _count(self._given["x"]) * self._itemsize
        self._laid: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._gates: dict[str, Gate] = {}
        self._predictions: dict[Any, memory.Prediction | None] = {}

    def call(self, contender: Entrant, which: str) -> Callable[[], tuple[Tensor, ...]]:
        """The contender's function of no arguments; gradients come after the results."""
        operands, arriving = self._laid_out()
        inputs = [operands[name] for name in contender.operands]
        if which == FORWARD:
            return torch.no_grad()(lambda: contender.function(*inputs))
        leaves, cotangents = [value.detach().requires_grad_() for value in inputs], list(arriving.values())

        def both() -> tuple[Tensor, ...]:
            results = contender.function(*leaves)
            return (*results, *torch.autograd.grad(results, leaves, cotangents))

        return both

    def judge(self, contender: Entrant, which: str, values: tuple[Tensor, ...]) -> Judgement:
        """Hold all results and gradients against the truth."""
        truth = _numbers(self.case, self._device).truth
        names = [*self._results, *(f"d{name}" for name in contender.operands)]
        found = check.errors(truth, zip(names, values, strict=False))
        if which not in self._gates:
            yardstick = found if contender is self.contenders[0] else None
            self._gates[which] = check.op_gate(self.case, truth, yardstick)
        return self._gates[which].judge(found, contender.role)

    def work(self, which: str) -> Sequence[roofline.Work]:
        """Compulsory bytes and FLOPs."""
        return roofline.op_work(self.case.op, which, *self.case.shape.sizes, self._itemsize)

    def flops(self, contender: Entrant, which: str) -> int | None:
        """By the ops' formulas, of a peer's code before it is compiled; None where one has no formula."""
        prediction = self._predict(contender, which)
        return None if prediction is None else prediction.flops or None

    def needs(self, contender: Entrant, which: str) -> int | None:
        """The case's own numbers with maps in its layout, the truth, and what the call holds."""
        prediction = self._predict(contender, which)
        if prediction is None:
            return None
        elements, x = map(_count, (*self._given.values(), *self._results.values())), _count(self._given["x"])
        maps = 1 + ("map" in self._results)  # dx, and the map itself
        copies = maps if self.case.layout == "nchw" else 0
        own = self._itemsize * (sum(elements) + copies * x) + 8 * maps * (x // check.stride_of(x))
        return own + prediction.peak_bytes

    def _laid_out(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The case's numbers, each where its layout has it."""
        if self._laid is None:
            numbers = _numbers(self.case, self._device)
            if self._judged:
                _ = numbers.truth  # now, while no contender's results take memory
            operands, arriving = (
                {name: lay_out(value, name, self.case) for name, value in values.items()}
                for values in (numbers.operands, numbers.arriving)
            )
            self._laid = operands, arriving
        return self._laid

    def _predict(self, contender: Entrant, which: str) -> memory.Prediction | None:
        key = (contender.plain, which)
        if key not in self._predictions:

            def empty(name: str, size: Size) -> Tensor:
                value = torch.empty(size, dtype=DTYPES[self.case.dtype], device=self._device)
                return lay_out(value, name, self.case)

            def make() -> tuple[list[Tensor], list[Tensor]]:
                arriving = [empty(name, size) for name, size in self._results.items()]
                return [empty(name, self._given[name]) for name in contender.operands], arriving

            self._predictions[key] = memory.predict(contender.plain, make, backward=which != FORWARD)
        return self._predictions[key]


def _count(size: Size) -> int:
    return int(torch.Size(size).numel())


def prepare(specs: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Compile our Triton kernels for these specs on all processors, so that the GPU waits for none of them.

    Peers are not: some measure while they compile what is faster, which wants an idle GPU. What does not
    compile here fails again, and is named, where it is launched.
    """
    from vt_fast.backends.triton import ahead

    start = time.monotonic()
    with ahead.Ahead(ahead.current_target(), ahead.processes()) as compilers:
        those = [(Case.of(spec), spec["passes"]) for spec in specs if spec["kind"] == "op"]
        wanted = [each for case, passes in those for each in requests(case, passes, device)]
        failed = len(ahead.finished(compilers.compile(wanted)))
    text = f"compiled {len(wanted)} launches ahead in {time.monotonic() - start:.0f} s, {failed} failed"
    print(text, file=sys.stderr, flush=True)


def requests(case: Case, passes: Sequence[str], device: torch.device) -> list[Any]:
    """What a case launches of our kernels; nothing for a stack, whose modules have options of their own."""
    if case.op == STACK:
        return []
    from vt_fast.backends.triton import ahead
    from vt_fast.backends.triton.samples import sample
    from vt_fast.backends.triton.schedule import standing_in, traits

    dtype, unit = DTYPES[case.dtype], "channels" if case.layout == "channels_last" else "pixels"

    def of(op: str) -> list[Any]:
        return ahead.requests(lambda: sample(op, dtype, unit, case.shape.sizes, "meta")())

    with standing_in(traits(device)):
        ops = [case.op if which == FORWARD else f"{case.op}_backward" for which in passes]
        return [request for op in ops for request in of(op)]

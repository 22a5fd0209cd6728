"""Ops, stacks, and maps in chunks as problems for :mod:`benchmarks.runner`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import check, memory, peers, roofline
from benchmarks.check import RESULTS, Gate, Judgement, Truth
from benchmarks.devices import Device
from benchmarks.inputs import TORCH_DTYPES, draw, lay_out, sizes, stack_code
from benchmarks.peers import Contender, Entrant
from benchmarks.results import BACKEND, OURS, PEER
from benchmarks.shapes import FORWARD, PASSES, STACK, Case


def problem(spec: dict[str, Any], device: Device) -> OpProblem:
    """By a :meth:`benchmarks.shapes.Case.spec`."""
    return OpProblem(Case.of(spec), device.torch_device, spec["peers"], spec["passes"])


class _Numbers(NamedTuple):
    """What the two layouts of a case share; maps are (B, N, C)."""

    operands: dict[str, Tensor]
    cotangents: tuple[Tensor, ...]
    truth: Truth


_kept: dict[tuple[Any, ...], _Numbers] = {}


def _numbers(case: Case, device: torch.device) -> _Numbers:
    key = (case.op, case.shape, case.dtype, case.depth if case.op == STACK else None, device)
    if key not in _kept:
        _kept.clear()  # the old ones must go before the new ones come
        operands, cotangents = draw(case, device)
        if case.op == STACK:
            reference = stack_code(case, "fp64", "reference", device)
            truth = check.solve_plainly(case.op, reference, operands, cotangents)
        else:
            truth = check.solve(case.op, operands, cotangents)
        _kept[key] = _Numbers(operands, cotangents, truth)
    return _kept[key]


class OpProblem:
    """A case, laid out in memory by its first call; see :class:`benchmarks.runner.Problem`."""

    def __init__(
        self,
        case: Case,
        device: torch.device,
        wanted: Sequence[str] | None = None,
        passes: Sequence[str] = PASSES,
    ) -> None:
        torch._dynamo.reset()  # its limit of compiled variants counts those of earlier cases
        self.case, self.device, self.passes, self.label = case, device, passes, case.label
        self.fields = {
            "mode": STACK if case.op == STACK else "ops",
            "case": case.job,
            "shape": case.shape.label,
            "dtype": case.dtype,
            "layout": case.layout,
        }
        self.map_bytes = case.shape.elements * TORCH_DTYPES[case.dtype].itemsize
        self.entrants = _entrants(case, wanted, device)
        self._inputs: tuple[dict[str, Tensor], tuple[Tensor, ...], Truth] | None = None
        self._gates: dict[str, Gate] = {}
        self._predictions: dict[Any, memory.Prediction | None] = {}

    @property
    def contenders(self) -> list[Contender]:
        """The yardstick first."""
        return [entrant.contender for entrant in self.entrants]

    def call(self, contender: Contender, which: str) -> Callable[[], tuple[Tensor, ...]]:
        """The contender's function of no arguments; gradients come after the results."""
        operands, cotangents, _ = self._laid_out()
        entrant = self._entrant(contender)
        inputs = [operands[name] for name in entrant.operands]
        if which == FORWARD:

            def forward() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return entrant.function(*inputs)

            return forward
        leaves = [value.detach().requires_grad_() for value in inputs]

        def both() -> tuple[Tensor, ...]:
            results = entrant.function(*leaves)
            return (*results, *torch.autograd.grad(results, leaves, cotangents))

        return both

    def judge(self, contender: Contender, which: str, values: tuple[Tensor, ...]) -> Judgement:
        """Hold all results and gradients against the truth."""
        truth = self._laid_out()[2]
        names = [*RESULTS[self.case.op], *(f"d{name}" for name in self._entrant(contender).operands)]
        found = check.errors(self.case, truth, zip(names, values, strict=False))
        if which not in self._gates:
            first = contender == self.contenders[0]
            gate = Gate.make(self.case, truth, found) if first else Gate.strict(self.case, truth)
            self._gates[which] = gate
        return self._gates[which].judge(found, contender.role)

    def work(self, which: str) -> Sequence[roofline.Work]:
        """Compulsory bytes and FLOPs of an op; a stack has no floor."""
        if self.case.op == STACK:
            return ()
        itemsize = TORCH_DTYPES[self.case.dtype].itemsize
        return roofline.op_work(self.case.op, which, *self.case.shape.numbers, itemsize)

    def flops(self, contender: Contender, which: str) -> int | None:
        """By the ops' formulas, of a peer's code before it is compiled."""
        prediction = self._predict(contender, which)
        return None if prediction is None else prediction.flops

    def needs(self, contender: Contender, which: str) -> int | None:
        """The case's own numbers, and what the call holds."""
        prediction = self._predict(contender, which)
        return None if prediction is None else self._own_bytes() + prediction.peak_bytes

    def _entrant(self, contender: Contender) -> Entrant:
        return next(each for each in self.entrants if each.contender == contender)

    def _laid_out(self) -> tuple[dict[str, Tensor], tuple[Tensor, ...], Truth]:
        if self._inputs is None:
            drawn, cotangents, truth = _numbers(self.case, self.device)
            operands = {name: self._lay_out(value, name == "x") for name, value in drawn.items()}
            is_map = [name == "map" for name in RESULTS[self.case.op]]
            self._inputs = operands, tuple(map(self._lay_out, cotangents, is_map)), truth
        return self._inputs

    def _lay_out(self, value: Tensor, is_map: bool) -> Tensor:
        return lay_out(value, self.case.shape, self.case.layout) if is_map else value

    def _predict(self, contender: Contender, which: str) -> memory.Prediction | None:
        entrant = self._entrant(contender)
        key = (entrant.plain, which)
        if key not in self._predictions:
            given, results = sizes(self.case)
            dtype = TORCH_DTYPES[self.case.dtype]

            def empty(size: tuple[int, ...], is_map: bool) -> Tensor:
                return self._lay_out(torch.empty(size, dtype=dtype, device=self.device), is_map)

            def make() -> tuple[list[Tensor], list[Tensor]]:
                inputs = [empty(given[name], name == "x") for name in entrant.operands]
                names = RESULTS[self.case.op]
                return inputs, [empty(size, name == "map") for name, size in zip(names, results, strict=True)]

            self._predictions[key] = memory.predict(entrant.plain, make, backward=which != FORWARD)
        return self._predictions[key]

    def _own_bytes(self) -> int:
        """Operands, gradients that arrive, maps in the layout of the case, and the truth."""
        given, results = sizes(self.case)
        elements, x = sum(torch.Size(size).numel() for size in (*given.values(), *results)), given["x"]
        maps = 1 + ("map" in RESULTS[self.case.op])  # dx, and the map itself
        copies = maps if self.case.layout == "nchw" else 0
        count = torch.Size(x).numel()
        itemsize = TORCH_DTYPES[self.case.dtype].itemsize
        return itemsize * (elements + copies * count) + 8 * maps * check.kept_elements(count)


def _entrants(case: Case, wanted: Sequence[str] | None, device: torch.device) -> list[Entrant]:
    if case.op != STACK:
        return peers.entrants(case, wanted, device)
    operands = tuple(sizes(case)[0])
    backends = peers.usable_backends(device)
    roles = [OURS, *[BACKEND] * len(backends)]
    found = [(Contender(f"vt_fast {name}", role), name) for name, role in zip(backends, roles, strict=False)]
    listed = wanted is None or "eager" in wanted
    found.insert(0, (Contender("eager", PEER, timed=listed), "reference"))
    codes = [stack_code(case, case.dtype, backend, device) for _, backend in found]
    return [Entrant(each, code, operands, code) for (each, _), code in zip(found, codes, strict=True)]


def prepare(those: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Compile our Triton kernels for these specs on all processors, so that the GPU waits for none of them.

    Peers are not: some measure while they compile what is faster, which wants an idle GPU. What does not
    compile here fails again, and is named, where it is launched.
    """
    from vt_fast.backends.triton import ahead

    start = time.monotonic()
    with ahead.Ahead(ahead.current_target(), ahead.processes()) as compilers:
        wanted = [each for one in those for each in requests(Case.of(one), one["passes"], device)]
        failed = ahead.finished(compilers.compile(wanted))
    seconds = time.monotonic() - start
    text = f"compiled ahead in {seconds:.0f} s, {len(failed)} of {len(wanted)} launches failed"
    print(text, file=sys.stderr, flush=True)


def requests(case: Case, passes: Sequence[str], device: torch.device) -> list[Any]:
    """What a case launches of our kernels; nothing for a stack, whose modules have options of their own."""
    if case.op == STACK:
        return []
    from vt_fast.backends.triton import ahead
    from vt_fast.backends.triton.samples import sample
    from vt_fast.backends.triton.schedule import standing_in, traits

    dtype, sizes = TORCH_DTYPES[case.dtype], case.shape.numbers
    unit = "channels" if case.layout == "channels_last" else "pixels"  # what lies side by side

    def of(op: str) -> list[Any]:
        return ahead.requests(lambda: sample(op, dtype, unit, sizes, "meta")())

    with standing_in(traits(device)):
        ops = [case.op if which == FORWARD else f"{case.op}_backward" for which in passes]
        return [request for op in ops for request in of(op)]

"""One case from its operands to its cells: gate, memory, times, ceilings."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from benchmarks import operands, records, stack
from benchmarks.cases import FORWARD, STACK, Case
from benchmarks.ceilings import Ceilings, Rates
from benchmarks.contenders import Contender, contenders, plain_function
from benchmarks.floors import compulsory_maps, count_flops, floor
from benchmarks.gate import OURS, PEERS, Gate, complaint
from benchmarks.peers import YARDSTICKS
from benchmarks.records import PEER, Cell, Entry
from benchmarks.timing import Budget, interleaved, wall_clock
from benchmarks.truth import RESULTS, Truth, solve, solve_plainly
from vt_fast.measure import peak_bytes

# A peer is left out, and its line says so, where its products alone would take this long ...
_TOO_LONG_SECONDS = 1.0
# ... and as many times the floor.
_TOO_MANY_FLOORS = 8.0

# Bytes of a map from which on it matters what memory an earlier case has left behind.
_LARGE_MAP = 1 << 26


Call: TypeAlias = Callable[[], tuple[Tensor, ...]]
_Admitted: TypeAlias = tuple[Entry, Call | None]


class Problem(NamedTuple):
    """What the two layouts of a case share."""

    operands: dict[str, Tensor]
    cotangents: tuple[Tensor, ...]
    truth: Truth


def pose(case: Case) -> Problem:
    """Draw a case's numbers and solve it in float64."""
    if case.op == STACK:
        drawn, cotangents = stack.draw(case.shape, case.dtype)
        reference = stack.code(case.shape, "fp64", "reference")
        return Problem(drawn, cotangents, solve_plainly(case.op, reference, drawn, cotangents))
    drawn, cotangents = operands.draw(case.op, case.shape, case.dtype)
    return Problem(drawn, cotangents, solve(case.op, drawn, cotangents))


class Trial:
    """A case laid out in memory, with everybody who takes part."""

    def __init__(self, case: Case, problem: Problem, wanted: Sequence[str] | None = None) -> None:
        torch._dynamo.reset()  # its limit of compiled variants counts those of earlier cases
        self.case, self.truth = case, problem.truth
        self.operands = {name: self._lay_out(value, name == "x") for name, value in problem.operands.items()}
        is_map = [name == "map" for name in RESULTS[case.op]]
        self.cotangents = tuple(map(self._lay_out, problem.cotangents, is_map))
        self.map_bytes = self.operands["x"].nbytes
        if case.op == STACK:
            self.contenders = stack.contenders(case.shape, case.dtype, list(self.operands), wanted)
        else:
            self.contenders = contenders(case, wanted)

    def _lay_out(self, value: Tensor, is_map: bool) -> Tensor:
        return operands.lay_out(value, self.case.shape, self.case.layout) if is_map else value

    @property
    def yardstick(self) -> Contender:
        """Whose error everybody's is measured by."""
        name = YARDSTICKS[self.case.op]
        return next(c for c in self.contenders if c.name == name and c.kind == PEER)

    def call(self, contender: Contender, which: str) -> Call:
        """The contender's function of no arguments; with gradients, they come after the results."""
        inputs = [self.operands[name] for name in contender.operands]
        if which == FORWARD:

            def forward() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return contender.function(*inputs)

            return forward
        leaves = [value.detach().requires_grad_() for value in inputs]

        def both() -> tuple[Tensor, ...]:
            results = contender.function(*leaves)
            return (*results, *torch.autograd.grad(results, leaves, self.cotangents))

        return both

    def named(self, contender: Contender, values: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What a call returned, by name."""
        names = [*RESULTS[self.case.op], *(f"d{name}" for name in contender.operands)]
        return zip(names, values, strict=False)

    def flops(self, contender: Contender, which: str) -> int:
        """FLOPs by the formulas of the ops."""
        inputs = {name: self.operands[name] for name in contender.operands}
        return count_flops(plain_function(contender, self.case.op), inputs, which)


def measure(
    trial: Trial, passes: Sequence[str], ceilings: Ceilings, budget: Budget, threads: int
) -> Iterator[Cell]:
    """The cells of a case, one for each pass."""
    rates = ceilings.measure()
    for which in passes:
        if trial.map_bytes >= _LARGE_MAP:
            _give_back_memory()
        least = None
        if trial.case.op != STACK:
            flops = trial.flops(trial.contenders[0], which)
            maps = compulsory_maps(trial.case.op, which)
            least = floor(maps * trial.map_bytes, flops, rates.bandwidth, rates.matrix_rate)[0]
        entries, before = _admit(trial, which, rates, least)
        running = {entry.name: call for entry, call in entries if call is not None}
        ours = {entry.name for entry, _ in entries if entry.kind == records.OURS}
        times = interleaved(running, budget, before=before, stay=ours)
        for entry, _ in entries:
            entry.seconds = times.get(entry.name, [])
        after = ceilings.measure()
        around, rates = rates + after, after
        yield Cell(
            **trial.case._asdict(),
            threads=threads,
            which=which,
            map_bytes=trial.map_bytes,
            floor=None if least is None else records.Floor(maps, flops, **around._asdict()),
            entries=[entry for entry, _ in entries],
        )


def _admit(
    trial: Trial, which: str, rates: Rates, least: float | None
) -> tuple[list[_Admitted], dict[str, float]]:
    """An entry for everybody, and for those who may be timed the function to time, called once already.

    With the seconds of that one call of each peer.
    """
    first = trial.yardstick
    admitted: dict[str, _Admitted] = {}
    before: dict[str, float] = {}
    gate: Gate | None = None
    for contender in [first, *(other for other in trial.contenders if other is not first)]:
        entry, call = Entry(contender.name, contender.kind), trial.call(contender, which)
        entry.reason = _hopeless(trial, contender, which, rates, least, before)
        if entry.reason is not None:
            entry.status = records.SKIPPED
        else:
            try:
                values, seconds = _run(entry, contender, call)
                if gate is None:
                    gate = Gate.make(trial.case, trial.truth, trial.named(contender, values))
                    entry.errors = gate.yardstick
                else:
                    entry.errors = gate.reached(trial.named(contender, values))
                del values
                multiple = PEERS if contender.kind == PEER or trial.case.op == STACK else OURS
                entry.allowed = gate.allowed(entry.errors, multiple)
                entry.reason = complaint(entry.errors, entry.allowed)
                if entry.reason is not None:
                    entry.status = records.WRONG
                elif contender.kind == PEER:
                    before[contender.name] = seconds
            except Exception as error:  # one that fails must not end the run, nor go unnamed
                if contender is first:
                    raise
                entry.status = records.UNAVAILABLE if contender.compiled else records.FAILED
                entry.reason = _cause(error)
        admitted[contender.name] = (entry, call if entry.status == records.OK else None)
    entries = [admitted[contender.name] for contender in trial.contenders if contender.timed]
    return entries, before


def _give_back_memory() -> None:
    """Return what is free to the system, on glibc: holes of an earlier case's sizes help nobody."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _cause(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _run(entry: Entry, contender: Contender, call: Call) -> tuple[tuple[Tensor, ...], float]:
    """What a contender computes, and about how long it takes; its extra memory goes into the entry."""
    if contender.compiled:
        call()  # compiles, which is neither its time nor its memory
    kept: list[tuple[Tensor, ...]] = []
    start = time.perf_counter()
    peak = peak_bytes(lambda: kept.append(call()))
    seconds = time.perf_counter() - start
    (values,) = kept
    entry.extra_bytes = peak - sum(value.numel() * value.element_size() for value in values)
    # Watching memory takes time of its own, which does not matter in a long call.
    return values, seconds if seconds > 0.1 else wall_clock(call)


def _hopeless(
    trial: Trial,
    contender: Contender,
    which: str,
    rates: Rates,
    least: float | None,
    before: Mapping[str, float],
) -> str | None:
    """Why a peer is not run: its matrix products alone say that it cannot be the best."""
    if contender.folded or least is None:
        return None
    seconds = trial.flops(contender, which) / rates.matrix_rate
    alone = f"its matrix products alone take {seconds:.3g} s at the measured rate"
    if seconds > max(_TOO_LONG_SECONDS, _TOO_MANY_FLOORS * least):
        return f"{alone}, {seconds / least:.0f} times the floor"
    if contender.compiled and before and seconds > min(before.values()):
        name = min(before, key=lambda name: before[name])
        return f"not compiled: {alone}, {name} {before[name]:.3g} s in all"
    return None

"""Who may be timed in a cell: those whose results and gradients pass the gate, and who are not hopeless."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from benchmarks import memory, records
from benchmarks.cases import STACK
from benchmarks.ceilings import Rates
from benchmarks.contenders import Contender
from benchmarks.device import Call, Device
from benchmarks.gate import OURS, PEERS, Gate, complaint, reached
from benchmarks.limits import Compiling
from benchmarks.records import PEER, Entry
from benchmarks.trial import Trial
from vt_fast.testing import peak_bytes

# A peer is left out, and its line says so, where its products alone would take this long ...
_TOO_LONG_SECONDS = 1.0
# ... and as many times the floor.
_TOO_MANY_FLOORS = 8.0


class Admission(NamedTuple):
    """Everybody's entry, the calls of those who may be timed, and the seconds of one call of each peer."""

    entries: list[Entry]
    calls: dict[str, Call]
    before: dict[str, float]
    gate: Gate
    trial: Trial

    def check(self, name: str, values: Sequence[Tensor]) -> str | None:
        """A complaint about what a call has computed when it was made again, or None."""
        contender = next(other for other in self.trial.contenders if other.name == name)
        found = reached(self.trial.case, self.trial.truth, self.trial.named(contender, values))
        return complaint(found, self.gate.allowed(found, _multiple(self.trial, contender)))


def admit(
    trial: Trial,
    which: str,
    rates: Rates,
    least: float | None,
    compiling: Compiling,
    most_bytes: int | None = None,
) -> Admission:
    """Let everybody make the call once. The yardstick comes first, since it says what errors are allowed.

    ``least`` is the floor in seconds, where there is one. Who would need more than ``most_bytes`` in all is
    not run; where that is the yardstick, others may only have the errors of rounding. Raises what the
    yardstick raises.
    """
    first = trial.yardstick
    admitted: dict[str, tuple[Entry, Call]] = {}
    before: dict[str, float] = {}
    gate: Gate | None = None
    for contender in [first, *(other for other in trial.contenders if other is not first)]:
        entry, call = Entry(contender.name, contender.kind), trial.call(contender, which)
        admitted[contender.name] = (entry, call)
        entry.reason = _hopeless(trial, contender, which, rates, least, before)
        if entry.reason is None and contender.compiled:
            entry.reason = compiling.refusal()
        if entry.reason is None and most_bytes is not None:
            where = trial.device.torch_device
            entry.needs_bytes = memory.needs(trial.case, contender, which, where)
            entry.reason = memory.complaint(entry.needs_bytes, most_bytes)
            if entry.reason is not None and contender is first:
                gate = Gate.strict(trial.case, trial.truth)
        if entry.reason is not None:
            entry.status = records.SKIPPED
            continue
        try:
            values, seconds = _run(trial.device, entry, contender, call, compiling)
            entry.errors = reached(trial.case, trial.truth, trial.named(contender, values))
            if gate is None:
                gate = Gate.make(trial.case, trial.truth, entry.errors)
            del values
            entry.allowed = gate.allowed(entry.errors, _multiple(trial, contender))
            entry.reason = complaint(entry.errors, entry.allowed)
            if entry.reason is not None:
                entry.status = records.WRONG
            elif contender.kind == PEER:
                before[contender.name] = seconds
            entry.note = trial.note(contender, which)
        except Exception as error:  # one that fails must not end the run, nor go unnamed
            if contender is first:
                raise
            entry.status = records.UNAVAILABLE if contender.compiled else records.FAILED
            entry.reason = cause(error)
        if entry.status == records.FAILED and trial.map_bytes >= trial.device.large_map:
            trial.device.give_back_memory()
    if gate is None:
        raise RuntimeError(
            f"the yardstick of {trial.case.label} did not run: {admitted[first.name][0].reason}"
        )
    shown = [contender.name for contender in trial.contenders if contender.timed]
    entries = [admitted[name][0] for name in shown]
    calls = {name: admitted[name][1] for name in shown if admitted[name][0].status == records.OK}
    return Admission(entries, calls, before, gate, trial)


def cause(error: BaseException) -> str:
    """An error in a line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _multiple(trial: Trial, contender: Contender) -> float:
    return PEERS if contender.kind == PEER or trial.case.op == STACK else OURS


def _run(
    device: Device, entry: Entry, contender: Contender, call: Call, compiling: Compiling
) -> tuple[tuple[Tensor, ...], float]:
    """What a contender computes, and about how long it takes; its extra memory goes into the entry."""
    if contender.compiled:
        with compiling.limited():
            call()  # compiles, which is neither its time nor its memory
    elif device.settles:
        call()
    kept: list[tuple[Tensor, ...]] = []
    start = time.perf_counter()
    peak = peak_bytes(lambda: kept.append(call()), device.torch_device)
    seconds = time.perf_counter() - start
    (values,) = kept
    entry.extra_bytes = peak - sum(value.numel() * value.element_size() for value in values)
    # Watching memory takes time of its own, which does not matter in a long call.
    return values, seconds if seconds > 0.1 else device.clock(call)


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

"""The loop over problems, passes and contenders; it runs in a child process of :mod:`benchmarks.processes`.

A mode of the command line is a module with two functions:

- ``add_arguments(parser)``: the mode's own options. ``--quick``, ``--device``, ``--results``, ``--output``
  and ``--compare`` are there already. A run with all options at their defaults is a full run.
- ``plans(options) -> list[Plan]``: what the child processes do, one after another. May raise
  :class:`benchmarks.processes.UsageError`.

Each problem of a plan is a dict with a "kind" of :data:`KINDS`, whose module has a function
``problem(spec, device: Device) -> Problem``. ``spec["fields"]``, where given, replaces fields of all its rows, for
example ``{"mode": "scaling", "series": "N=196"}``.
"""

from __future__ import annotations

import importlib
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from benchmarks import devices, memory
from benchmarks.attention import Choices
from benchmarks.check import Judgement
from benchmarks.devices import Device, cause
from benchmarks.peers import Contender
from benchmarks.processes import CPU, Message, Plan
from benchmarks.results import BACKEND, FAILED, OK, OURS, PEER, SKIPPED, UNAVAILABLE, WRONG, Row
from benchmarks.roofline import Ceilings, Work
from benchmarks.timing import Budget, Compiling, Deadline, quantiles
from vt_fast.testing import peak_bytes

Call: TypeAlias = Callable[[], tuple[Tensor, ...]]

# The module of each kind of problem.
KINDS = {
    "op": "benchmarks.problems",
    "network": "benchmarks.networks",
    "layer": "benchmarks.layers",
}
# A peer is left out, and its row says so, where its products alone would take this long, and as many floors.
_TOO_LONG_SECONDS, _TOO_MANY_FLOORS = 1.0, 8.0
# On a GPU our kernels are compiled ahead for so many problems: a run that ends early has not compiled all.
_AHEAD = 24
# What a process with torch in it takes besides tensors, the stacks of its threads included.
_OWN_BYTES = 3 << 30
_ORDER = (OURS, BACKEND, PEER)


class Problem(Protocol):
    """A case with all its contenders. Nothing large is in memory before the first :meth:`call`.

    ``fields``: what all its rows share, by the names of :class:`benchmarks.results.Row`: mode, case, shape,
    dtype, layout. ``map_bytes``: where they are many, free memory is given back before the case.
    """

    label: str
    fields: dict[str, Any]
    passes: Sequence[str]
    map_bytes: int

    @property
    def contenders(self) -> Sequence[Contender]:
        """The yardstick first."""
        ...

    def call(self, contender: Contender, which: str) -> Call:
        """The contender's call of no arguments. It returns what :meth:`judge` takes."""
        ...

    def judge(self, contender: Contender, which: str, values: tuple[Tensor, ...]) -> Judgement:
        """Compare results with the truth. The first contender, the yardstick, is judged first in each pass.

        Where it was not run, for lack of memory, no error but rounding is allowed.
        """
        ...

    def work(self, which: str) -> Sequence[Work]:
        """What no implementation can avoid; nothing where there is no floor."""
        ...

    def flops(self, contender: Contender, which: str) -> int | None:
        """FLOPs of the contender's call, or None where they are not known."""
        ...

    def needs(self, contender: Contender, which: str) -> int | None:
        """Bytes that the process would hold in all, by prediction, or None."""
        ...


@dataclass
class _Entry:
    """A contender in one pass, and what has become of it so far. ``before``: seconds of the checked call."""

    contender: Contender
    call: Call | None = None
    status: Any = OK
    reason: str = ""
    before: float | None = None
    error: float | None = None
    work: int | None = None
    extra_bytes: int | None = None
    needs_bytes: int | None = None
    note: str = ""


class _Pass(NamedTuple):
    """What measuring one pass of a problem needs. ``seconds_of``: the least that so many FLOPs take."""

    problem: Problem
    which: str
    device: Device
    compiling: Compiling
    most_bytes: int | None
    floor: float | None
    seconds_of: Callable[[int], float]


def measure(
    problem: Problem,
    device: Device,
    budget: Budget,
    ceilings: Ceilings | None = None,
    *,
    compiling: Compiling | None = None,
    most_bytes: int | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
    """All rows of a problem, pass by pass; without ``ceilings`` they have no floors.

    Raises what the yardstick raises.
    """
    shared = {**problem.fields, "threads": device.threads, **(fields or {})}
    for which in problem.passes:
        if problem.map_bytes >= device.large_map:
            device.give_back_memory()
        device.warm_up()
        work = () if ceilings is None else problem.work(which)
        least, seconds_of = None, _free
        if ceilings is not None and work:
            ceilings.measure(work)
            least, seconds_of = ceilings.floor(work).seconds, _rate_of(ceilings)
        state = _Pass(problem, which, device, compiling or Compiling(), most_bytes, least, seconds_of)
        entries = _admit(state)
        calls = {e.contender.name: e.call for e in entries if e.call is not None and e.contender.timed}
        by_name = {entry.contender.name: entry for entry in entries}

        def check(name: str, values: tuple[Tensor, ...], which: str = which, by_name: Any = by_name) -> Any:
            return problem.judge(by_name[name].contender, which, values).complaint

        before = {e.contender.name: e.before for e in entries if e.before is not None}
        ours = [entry.contender.name for entry in entries if entry.contender.role == OURS]
        timed = device.times(calls, check, budget, before, ours)
        floor = None
        if ceilings is not None and work:
            ceilings.measure(work)
            floor = ceilings.floor(work)
        for clock, those in timed.items():
            for entry in sorted(entries, key=lambda entry: _ORDER.index(entry.contender.role)):
                name = entry.contender.name
                if not entry.contender.timed or (name not in those and clock != device.clock_name):
                    continue
                found = those.get(name, devices.Times([], entry.status, entry.reason))
                median = low = high = None
                if found.seconds:
                    median, low, high = quantiles(found.seconds)
                yield Row(
                    **shared,
                    which=which,
                    contender=name,
                    role=entry.contender.role,  # type: ignore[arg-type]
                    clock=clock,
                    status=found.status,
                    reason=found.reason,
                    median=median,
                    low=low,
                    high=high,
                    rounds=len(found.seconds),
                    floor=None if floor is None else floor.seconds,
                    bound="" if floor is None else floor.bound,
                    work=entry.work,
                    extra_bytes=entry.extra_bytes,
                    needs_bytes=entry.needs_bytes,
                    error=entry.error,
                    note=entry.note,
                )
        del calls, entries, by_name


def _free(flops: int) -> float:
    return 0.0


def _rate_of(ceilings: Ceilings) -> Callable[[int], float]:
    return lambda flops: ceilings.floor([Work(0, 0, flops)]).seconds


def _admit(state: _Pass) -> list[_Entry]:
    """Make every contender's call once. The yardstick comes first: it says what errors are allowed."""
    entries: list[_Entry] = []
    for contender in state.problem.contenders:
        entry = _Entry(contender)
        entry.work = state.problem.flops(contender, state.which)
        entry.reason = _refusal(state, entry, entries) or ""
        if entry.reason:
            entry.status = SKIPPED
        else:
            _try(state, entry, first=not entries)
        entries.append(entry)
        if entry.status == FAILED and state.problem.map_bytes >= state.device.large_map:
            state.device.give_back_memory()
    return entries


def _refusal(state: _Pass, entry: _Entry, before: Sequence[_Entry]) -> str | None:
    """Why a contender is not run."""
    contender = entry.contender
    if state.most_bytes is not None:
        entry.needs_bytes = state.problem.needs(contender, state.which)
        reason = memory.complaint(entry.needs_bytes, state.most_bytes)
        if reason is not None:
            return reason
        entry.needs_bytes = None
    if contender.role == PEER and state.floor and entry.work:
        # Its matrix products alone say that it cannot be the fastest.
        seconds = state.seconds_of(entry.work)
        alone = f"its matrix products alone take {seconds:.3g} s at the measured rate"
        if seconds > max(_TOO_LONG_SECONDS, _TOO_MANY_FLOORS * state.floor):
            return f"{alone}, {seconds / state.floor:.0f} times the floor"
        known = [other for other in before if other.before is not None]
        fastest = min(known, key=lambda other: other.before or 0.0, default=None)
        if contender.compiled and fastest is not None and seconds > (fastest.before or 0.0):
            name, least = fastest.contender.name, fastest.before
            return f"not compiled: {alone}, {name} takes {least:.3g} s in all"
    return state.compiling.refusal() if contender.compiled else None


def _try(state: _Pass, entry: _Entry, *, first: bool) -> None:
    """Run a contender and judge what it computes."""
    contender, device = entry.contender, state.device
    try:
        call = state.problem.call(contender, state.which)
        if contender.compiled:
            with state.compiling.limited():
                call()  # compiles, which is neither its time nor its memory
        elif device.settles:
            call()
        kept: list[tuple[Tensor, ...]] = []
        watch: Any = nullcontext() if contender.compiled or contender.role != PEER else Choices()
        start = time.perf_counter()
        with watch:
            peak = peak_bytes(lambda: kept.append(call()), device.torch_device)
        seconds = time.perf_counter() - start
        (values,) = kept
        entry.extra_bytes = peak - sum(value.nbytes for value in values)
        if isinstance(watch, Choices) and watch.names:
            entry.note = f"fused attention: {', '.join(watch.names)}"
        # Watching memory takes time of its own, which does not matter in a long call.
        seconds = seconds if seconds > 0.1 else device.clock(call)
        judgement = state.problem.judge(contender, state.which, values)
        entry.error = judgement.error
        if judgement.complaint is not None:
            entry.status, entry.reason = WRONG, judgement.complaint
            return
        entry.call = call
        if contender.role == PEER:
            entry.before = seconds
    except Exception as error:  # one that fails must not end the run, nor go unnamed
        if first:
            raise
        entry.status = UNAVAILABLE if contender.compiled else FAILED
        entry.reason = cause(error)


def work(plan: Plan) -> Iterator[Message]:
    """Measure all problems of a plan."""
    # Inductor's advice on how to make a peer faster is for its authors.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = plan.tf32
    torch.set_num_threads(len(plan.cpus))
    deadline = Deadline(plan.seconds)
    device = devices.make(plan.device, plan.cpus, plan.repeat)
    yield Message(facts=device.facts())
    session = _Session(plan, device, Compiling(deadline, plan.compile_seconds))
    for index, spec in enumerate(plan.problems):
        yield Message(index=index, case=str(spec.get("label", spec["kind"])))
        if deadline.remaining <= 0:
            yield Message(left_out={"why": "time", "reason": "the time was spent"})
            continue
        if plan.device != CPU and plan.repeat is None and index % _AHEAD == 0:
            session.prepare(plan.problems[index : index + _AHEAD])
        yield from session.attempt(spec)
        trouble = session.trouble()
        if trouble is not None:
            raise RuntimeError(f"nothing runs any more: {trouble}")
    yield from session.ceiling_rows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    process = {"cpus": plan.cpus, "threads": torch.get_num_threads(), "peak_resident_bytes": peak}
    yield Message(facts={"processes": [process]})


class _Session:
    """A plan while it is carried out: what is kept from one problem to the next."""

    def __init__(self, plan: Plan, device: Device, compiling: Compiling) -> None:
        self.plan, self.device, self.compiling = plan, device, compiling
        self.most_bytes = plan.memory_bytes
        self.on_gpu = plan.device != CPU
        if self.on_gpu and self.most_bytes is None:
            self.most_bytes = int(memory.SHARE * torch.cuda.mem_get_info(device.torch_device)[0])
        elif self.most_bytes is not None:
            # Let malloc fail where a prediction was too small, and not the machine.
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (self.most_bytes + _OWN_BYTES, hard))
        self.ceilings: dict[str, Ceilings] = {}

    def prepare(self, those: Sequence[dict[str, Any]]) -> None:
        """Compile our kernels for the problems that are ops."""
        from benchmarks import problems

        problems.prepare([spec for spec in those if spec["kind"] == "op"], self.device.torch_device)

    def attempt(self, spec: dict[str, Any]) -> Iterator[Message]:
        """Measure a problem; what goes wrong is a message."""
        found, case = [], str(spec)
        try:
            module = importlib.import_module(KINDS[spec["kind"]])
            problem: Problem = module.problem(spec, self.device)
            case = problem.label
            yield Message(case=case)
            ceilings = yield from self._ceilings(problem)
            rows = measure(
                problem,
                self.device,
                self.plan.budget,
                ceilings,
                compiling=self.compiling,
                most_bytes=self.most_bytes,
                fields=spec.get("fields"),
            )
            for row in rows:
                yield Message(rows=[row])
        except torch.OutOfMemoryError as error:
            found = [Message(left_out={"why": "memory", "reason": cause(error)})]
        except Exception as error:  # the other problems are still worth their time
            found = [Message(problem=f"{case}: {cause(error)}")]
        yield from found

    def _ceilings(self, problem: Problem) -> Any:
        """The ceilings of the problem's dtype; on a GPU those of one dtype at a time, for their memory."""
        dtype = problem.fields["dtype"]
        if self.plan.repeat is not None or not any(problem.work(which) for which in problem.passes):
            return None
        if dtype not in self.ceilings:
            if self.on_gpu:
                yield from self.ceiling_rows()
                self.ceilings.clear()
            self.ceilings[dtype] = self.device.ceilings(dtype, quick=self.plan.quick)
        return self.ceilings[dtype]

    def ceiling_rows(self) -> Iterator[Message]:
        """What was measured of the machine."""
        yield Message(rows=[row for each in self.ceilings.values() for row in each.rows()])

    def trouble(self) -> str | None:
        """Why no kernel runs any more, after one that wrote where it must not; None if all is well.

        Not where an error is handled: its traceback holds the problem's tensors.
        """
        try:
            self.device.synchronize()
        except Exception as error:
            return cause(error)
        return None

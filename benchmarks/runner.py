"""The loop over problems, passes and contenders; it runs in a child process of :mod:`benchmarks.processes`.

A mode of the command line is a module with ``add_arguments(parser)`` and ``plans(options) -> list[Plan]``. A
run with all of the mode's options at their defaults is a full run. Each problem of a plan is a dict with a
"kind" of :data:`KINDS`, whose module has ``problem(spec, device) -> Problem``. Its "fields", where given,
replace fields of all its rows.
"""

from __future__ import annotations

import importlib
import resource
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks import devices, memory, problems
from benchmarks.check import Judgement
from benchmarks.devices import Call, Device, Times, cause
from benchmarks.peers import Contender
from benchmarks.processes import CPU, Message, Plan
from benchmarks.results import BACKEND, FAILED, OK, OURS, PEER, REPLACED, SKIPPED, UNAVAILABLE, WRONG, Row
from benchmarks.roofline import Ceilings, Work
from benchmarks.timing import Budget, Limits, quantiles
from vt_fast.testing import peak_bytes

# The module of each kind of problem.
KINDS = {
    "op": "benchmarks.problems",
    "network": "benchmarks.networks",
    "layer": "benchmarks.layers",
    "host": "benchmarks.hosts",
    "switch": "benchmarks.switches",
}
# A peer is left out, and its row says so, where its products alone would take this long, and as many floors.
_TOO_LONG_SECONDS, _TOO_MANY_FLOORS = 1.0, 8.0
# On a GPU our kernels are compiled ahead for so many problems: a run that ends early has not compiled all.
_AHEAD = 24
# What a process with torch in it takes besides tensors, the stacks of its threads included.
_OWN_BYTES = 3 << 30


class Problem(Protocol):
    """A case with all its contenders. Nothing large is in memory before the first :meth:`call`.

    ``fields``: what all its rows share, by the names of :class:`benchmarks.results.Row`. ``map_bytes``: where
    they are many, free memory is given back before the case.
    """

    label: str
    fields: dict[str, Any]
    passes: Sequence[str]
    map_bytes: int

    @property
    def contenders(self) -> Sequence[Contender]:
        """The yardstick first. Methods take what is in here."""

    def call(self, contender: Any, which: str) -> Call:
        """The contender's call, which returns what :meth:`judge` takes."""

    def judge(self, contender: Any, which: str, values: tuple[Tensor, ...]) -> Judgement:
        """Compare results with the truth. The yardstick is judged first in each pass.

        Where it was not run, for lack of memory, no error but rounding is allowed.
        """

    def work(self, which: str) -> Sequence[Work]:
        """What no implementation can avoid; nothing where there is no floor."""

    def flops(self, contender: Any, which: str) -> int | None:
        """FLOPs of the contender's call, or None where they are not known."""

    def needs(self, contender: Any, which: str) -> int | None:
        """Bytes that the process would hold in all, by prediction, or None."""


@dataclass
class Entry:
    """A contender in one pass, and what has become of it. ``before``: seconds of a peer's checked call."""

    contender: Contender
    work: int | None
    call: Call | None = None
    status: str = OK
    reason: str = ""
    before: float | None = None
    error: float | None = None
    extra_bytes: int | None = None
    needs_bytes: int | None = None

    def row(self, times: Times, **fields: Any) -> Row:
        """For a result file."""
        if times.seconds:
            fields |= quantiles(times.seconds)._asdict()
        fields |= {"contender": self.contender.name, "role": self.contender.role, "work": self.work}
        fields |= {"status": times.status, "reason": times.reason, "rounds": len(times.seconds)}
        fields |= {"extra_bytes": self.extra_bytes, "needs_bytes": self.needs_bytes}
        return Row(error=self.error, note=times.note, **fields)


@dataclass(frozen=True)
class Measurement:
    """Measures problems on one device; without ``ceilings`` their rows have no floors."""

    device: Device
    budget: Budget
    ceilings: Ceilings | None = None
    limits: Limits = field(default_factory=Limits)
    most_bytes: int | None = None

    def rows(self, problem: Problem, **fields: Any) -> Iterator[Row]:
        """All rows of a problem, pass by pass. Raises what the yardstick raises."""
        shared = {**problem.fields, "threads": self.device.threads, **fields}
        for which in problem.passes:
            yield from self._pass(problem, which, {**shared, "which": which})

    def _pass(self, problem: Problem, which: str, shared: dict[str, Any]) -> Iterator[Row]:
        if problem.map_bytes >= self.device.large_map:
            self.device.give_back_memory()
        self.device.warm_up()
        work, least = problem.work(which), None
        ceilings = self.ceilings if work else None
        if ceilings is not None:
            ceilings.measure(work, anew=True)
            least = ceilings.floor(work).seconds
        entries = self.admit(problem, which, least)
        named = {entry.contender.name: entry for entry in entries if entry.contender.timed}

        def check(name: str, values: tuple[Tensor, ...]) -> str | None:
            return problem.judge(named[name].contender, which, values).complaint

        calls = {name: entry.call for name, entry in named.items() if entry.call is not None}
        before = {e.contender.name: e.before for e in entries if e.before is not None}
        ours = [name for name, entry in named.items() if entry.contender.role == OURS]
        timed = self.device.times(calls, check, self.budget, before=before, stay=ours)
        if ceilings is not None:
            ceilings.measure(work)
            floor = ceilings.floor(work)
            shared |= {"floor": floor.seconds, "bound": floor.bound}
        roles = (OURS, BACKEND, PEER, REPLACED)
        for name, entry in sorted(named.items(), key=lambda item: roles.index(item[1].contender.role)):
            found = timed.get(name, Times([], entry.status, entry.reason))
            yield entry.row(found, **shared, clock=self.device.clock_name)

    def admit(self, problem: Problem, which: str, least: float | None = None) -> list[Entry]:
        """Make every contender's call once, the yardstick's first: it says what errors are allowed.

        ``least``: the floor in seconds, where there is one.
        """
        entries: list[Entry] = []
        for contender in problem.contenders:
            entry = Entry(contender, problem.flops(contender, which))
            entry.reason = self._refusal(problem, which, entry, least, entries) or ""
            if entry.reason:
                entry.status = SKIPPED
            else:
                self._try(problem, which, entry, first=not entries)
            entries.append(entry)
            if entry.status == FAILED and problem.map_bytes >= self.device.large_map:
                self.device.give_back_memory()
        return entries

    def _refusal(
        self, problem: Problem, which: str, entry: Entry, least: float | None, before: Sequence[Entry]
    ) -> str | None:
        """Why a contender is not run."""
        contender = entry.contender
        if self.most_bytes is not None:
            needs = problem.needs(contender, which) or 0
            if needs > self.most_bytes:
                entry.needs_bytes = needs
                return f"needs about {needs / 1e9:.3g} GB, and may have {self.most_bytes / 1e9:.3g} GB"
        if contender.role == PEER and self.ceilings is not None and least and entry.work:
            # Its matrix products alone say that it cannot be the fastest.
            seconds = self.ceilings.floor([Work(0, 0, entry.work)]).seconds
            alone = f"its matrix products alone take {seconds:.3g} s at the measured rate"
            if seconds > max(_TOO_LONG_SECONDS, _TOO_MANY_FLOORS * least):
                return f"{alone}, {seconds / least:.0f} times the floor"
            known = [(other.before, other.contender.name) for other in before if other.before is not None]
            if contender.compiled and known and seconds > min(known)[0]:
                return f"not compiled: {alone}, {min(known)[1]} takes {min(known)[0]:.3g} s in all"
        return self.limits.refusal() if contender.compiled else None

    def _try(self, problem: Problem, which: str, entry: Entry, *, first: bool) -> None:
        """Run a contender and judge what it computes."""
        contender, device = entry.contender, self.device
        try:
            call = problem.call(contender, which)
            if contender.compiled:
                with self.limits.compiling():
                    call()  # compiles, which is neither its time nor its memory
            elif device.settles:
                call()
            kept: list[tuple[Tensor, ...]] = []
            start = time.perf_counter()
            peak = peak_bytes(lambda: kept.append(call()), device.torch_device)
            seconds = time.perf_counter() - start
            (values,) = kept
            entry.extra_bytes = peak - sum(value.nbytes for value in values)
            judgement = problem.judge(contender, which, values)
            entry.error = judgement.error
            if judgement.complaint is not None:
                entry.status, entry.reason = WRONG, judgement.complaint
                return
            del values
            kept.clear()
            if contender.role == PEER:
                # Watching memory takes time of its own, which does not matter in a long call.
                entry.before = seconds if seconds > 0.1 else device.clock(call)
            entry.call = call
        except ImportError as error:  # of a package that is not installed
            entry.status, entry.reason = UNAVAILABLE, cause(error)
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
    limits = Limits(plan.seconds, plan.compile_seconds)
    device = devices.make(plan.device, plan.cpus, plan.repeat)
    measurement = Measurement(device, plan.budget, None, limits, _memory_limit(plan, device))
    ceilings: dict[str, Ceilings] = {}
    for index, spec in enumerate(plan.problems):
        yield Message(index=index, case=spec["kind"])
        if limits.remaining <= 0:
            yield Message(left_out={"why": "time", "reason": "the time was spent"})
            continue
        if plan.device != CPU and plan.repeat is None and index % _AHEAD == 0:
            problems.prepare(plan.problems[index : index + _AHEAD], device.torch_device)
        yield from _attempt(spec, plan, measurement, ceilings)
        device.synchronize()  # where nothing runs any more, this process ends, and another one goes on
    yield _rows_of(ceilings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    process = {"cpus": plan.cpus, "threads": torch.get_num_threads(), "peak_resident_bytes": peak}
    yield Message(facts={"processes": [process]})


def _memory_limit(plan: Plan, device: Device) -> int | None:
    if plan.device != CPU:
        return plan.memory_bytes or int(memory.SHARE * torch.cuda.mem_get_info(device.torch_device)[0])
    if plan.memory_bytes is not None:
        # Let malloc fail where a prediction was too small, and not the machine.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (plan.memory_bytes + _OWN_BYTES, hard))
    return plan.memory_bytes


def _attempt(
    spec: dict[str, Any], plan: Plan, measurement: Measurement, ceilings: dict[str, Ceilings]
) -> Iterator[Message]:
    """Measure a problem; what goes wrong is a message."""
    failed, case = Message(), spec["kind"]
    try:
        problem: Problem = importlib.import_module(KINDS[spec["kind"]]).problem(spec, measurement.device)
        case = problem.label
        yield Message(case=case)
        dtype = problem.fields["dtype"]
        if plan.repeat is None and any(problem.work(which) for which in problem.passes):
            if dtype not in ceilings and plan.device != CPU:  # one at a time, for their memory
                yield _rows_of(ceilings)
                ceilings.clear()
            if dtype not in ceilings:
                ceilings[dtype] = measurement.device.ceilings(dtype, quick=plan.quick)
        for row in replace(measurement, ceilings=ceilings.get(dtype)).rows(problem, **spec.get("fields", {})):
            yield Message(rows=[row])
    except torch.OutOfMemoryError as error:
        failed = Message(left_out={"why": "memory", "reason": cause(error)})
    except Exception as error:  # the other problems are still worth their time
        failed = Message(problem=f"{case}: {cause(error)}")
    # Not where the error is handled: its traceback holds the problem's tensors.
    yield failed


def _rows_of(ceilings: Mapping[str, Ceilings]) -> Message:
    return Message(rows=[row for each in ceilings.values() for row in each.rows()])

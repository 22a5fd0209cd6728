"""One case from its trial to its cells: floor, admission, times, ceilings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks import memory, records
from benchmarks.admission import admit
from benchmarks.cases import STACK, Case
from benchmarks.ceilings import Ceilings
from benchmarks.device import Device
from benchmarks.floors import compulsory_maps, floor
from benchmarks.limits import Compiling
from benchmarks.operands import TORCH_DTYPES
from benchmarks.records import Cell, Entry
from benchmarks.timing import Budget
from benchmarks.trial import Trial, who

# Of what it may have: a case whose own numbers take less is measured without a look at what all would need.
_SURELY = 0.1


def measure(
    trial: Trial,
    passes: Sequence[str],
    ceilings: Ceilings,
    budget: Budget,
    compiling: Compiling | None = None,
    most_bytes: int | None = None,
) -> Iterator[Cell]:
    """The cells of a case, one for each pass; in ``most_bytes`` at most, where that is given."""
    device = trial.device
    device.warm_up()
    rates = ceilings.measure()
    for which in passes:
        if trial.map_bytes >= device.large_map:
            device.give_back_memory()
        least = None
        if trial.case.op != STACK:
            flops = trial.flops(trial.contenders[0], which)
            maps = compulsory_maps(trial.case.op, which)
            least = floor(maps * trial.map_bytes, flops, rates.bandwidth, rates.matrix_rate)[0]
        compiling = Compiling() if compiling is None else compiling
        admission = admit(trial, which, rates, least, compiling, most_bytes)
        ours = {entry.name for entry in admission.entries if entry.kind == records.OURS}
        times = device.times(admission.calls, admission.check, budget, admission.before, ours)
        for entry in admission.entries:
            if entry.name not in times:
                continue
            found = times[entry.name]
            entry.seconds, entry.eager_seconds = found.seconds, list(found.eager_seconds)
            entry.timed_as = found.timed_as
            entry.note = "; ".join(filter(None, [entry.note, found.note])) or None
            if found.wrong is not None:
                entry.status, entry.reason = records.WRONG, found.wrong
            elif not found.seconds:
                entry.status, entry.reason = records.FAILED, found.note
        after = ceilings.measure()
        around, rates = rates + after, after
        yield Cell(
            **trial.case._asdict(),
            threads=device.threads,
            which=which,
            map_bytes=trial.map_bytes,
            floor=None if least is None else records.Floor(maps, flops, **dataclasses.asdict(around)),
            entries=admission.entries,
        )


def refuse(
    case: Case, passes: Sequence[str], peers: Sequence[str] | None, device: Device, most_bytes: int
) -> list[Cell]:
    """The cells of a case in which nobody fits into the memory, nobody having been run; else none."""
    own = memory.numbers_bytes(case)
    if own <= most_bytes * _SURELY:
        return []
    found = []
    shape = case.shape
    map_bytes = shape.batch * shape.pixels * shape.channels * TORCH_DTYPES[case.dtype].itemsize
    for which in passes:
        entries = []
        for contender in who(case, peers, device):
            entry = Entry(contender.name, contender.kind, records.SKIPPED)
            entry.needs_bytes = memory.needs(case, contender, which, device.torch_device) or own
            entry.reason = memory.complaint(entry.needs_bytes, most_bytes)
            if entry.reason is None:
                return []
            entries += [entry] if contender.timed else []
        found.append(
            Cell(
                **case._asdict(),
                threads=device.threads,
                which=which,
                map_bytes=map_bytes,
                floor=None,
                entries=entries,
            )
        )
    return found

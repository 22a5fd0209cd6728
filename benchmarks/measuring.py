"""One case from its trial to its cells: floor, admission, times, ceilings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import records
from benchmarks.admission import admit
from benchmarks.cases import STACK
from benchmarks.ceilings import Ceilings
from benchmarks.floors import compulsory_maps, floor
from benchmarks.limits import Compiling
from benchmarks.records import Cell
from benchmarks.timing import Budget
from benchmarks.trial import Trial


def measure(
    trial: Trial,
    passes: Sequence[str],
    ceilings: Ceilings,
    budget: Budget,
    compiling: Compiling | None = None,
) -> Iterator[Cell]:
    """The cells of a case, one for each pass."""
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
        admission = admit(trial, which, rates, least, Compiling() if compiling is None else compiling)
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
        after = ceilings.measure()
        around, rates = rates + after, after
        yield Cell(
            **trial.case._asdict(),
            threads=device.threads,
            which=which,
            map_bytes=trial.map_bytes,
            floor=None if least is None else records.Floor(maps, flops, **around._asdict()),
            entries=admission.entries,
        )

"""Compare two runs: what is slower or faster by more than noise, has lost its time or takes more memory.

The times of one process tell how far its median may be off *in that process*. The next process has other
pages, other neighbours on the machine and another clock rate, and its times move by several times as much.
Code that did not change shows by how much: the peers of the same cells in the same runs.

1. A change is log(NEW's median / OLD's median).
2. The machine's drift in a cell is the median change of its peers, and is taken off. For a peer it is the
   median of the *other* peers of its cell; what remains of its change is scatter and nothing else.
3. The noise of a change is ``z`` times the root of the sum of two squares: the standard error of its medians,
   from the 20 % and 80 % quantiles and the number of rounds of both runs, and the scatter of the peers, from
   the 99 % quantile of what remained of their changes. ``z`` is such that one comparison in twenty would
   report anything by mistake if the scatter were normal. It has longer tails, so its scale is read off that
   far out. Fewer than ten times say too little of it: then it is at least 5 %.
4. The same again for means over groups of cells, which show a small change of all of them. Cells that were
   reported already are left out. The scatter of a mean is taken to fall with the root of the number of cells.

Nothing is drawn at random: the same two files always give the same answer.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.plots import digits, is_first_call, place
from benchmarks.report import as_text, spread, table
from benchmarks.results import CEILING, OURS, PEER, REPLACED, Row, Run

SLOWER, FASTER, SAME = "slower", "faster", "same"
# How often a comparison may report a change by mistake.
_MISTAKES = 0.05
# The quantile of the peers' scatter that sets its scale.
_TAIL = 0.99
# Of fewer times the scatter is at least that.
_FEW, _LEAST_SCATTER = 10, 0.05
# Fewer rounds say nothing about a quantile.
_LEAST_ROUNDS = 3
# Memory may grow by this share, or by this many bytes: what an allocator rounds to.
_MEMORY_SHARE, _MEMORY_BYTES = 0.02, 1 << 16
_NORMAL = NormalDist()
# Times depend on these facts: what each is called, and where it is.
_FACTS = {
    "CPU": ("machine", "devices", "cpu"),
    "number of cores": ("machine", "devices", "cores"),
    "instruction set": ("machine", "devices", "instructions"),
    "GPU": ("machine", "gpu", "name"),
    "torch": ("machine", "versions", "torch"),
    "--quick": ("settings", "quick"),
    "--tf32": ("settings", "tf32"),
}


class Change(NamedTuple):
    """How a time, or the mean of several, differs between two runs, in natural logs.

    ``raw``: of NEW's median over OLD's. ``drift``: the machine's part of it. ``error``: standard error of the
    medians. ``noise``: what a change must exceed to be one. ``group``: cells that are averaged. ``stratum``:
    times that scatter alike from run to run.
    """

    cell: str
    group: str
    stratum: str
    name: str
    role: str
    raw: float
    error: float
    drift: float = 0.0
    noise: float = 0.0
    cells: int = 1

    @property
    def left(self) -> float:
        """What the machine does not explain."""
        return self.raw - self.drift

    @property
    def verdict(self) -> str:
        """Slower, faster, or the same as far as one can tell."""
        if abs(self.left) <= self.noise:
            return SAME
        return SLOWER if self.left > 0 else FASTER


class Comparison(NamedTuple):
    """Two runs compared.

    ``changes`` are of single cells, ``groups`` of means over cells that are the same one by one. ``lost``:
    our rows that had a time in OLD and have none, and why. ``grown``: our rows that take more memory.
    ``alone``: how many cells are in NEW or OLD only. ``forced``: differences that were overruled.
    """

    pairs: Mapping[tuple[str, str], tuple[Row, Row]]
    changes: list[Change]
    groups: list[Change]
    lost: list[tuple[Row, str]]
    grown: list[tuple[Row, Row]]
    cells: int
    alone: tuple[int, int]
    forced: list[str]

    def ours(self, verdict: str) -> list[Change]:
        """Our rows with that verdict, then our groups, the largest changes first."""
        return [
            each
            for part in (self.changes, self.groups)
            for each in sorted(part, key=lambda each: -abs(each.left))
            if (each.role, each.verdict) == (OURS, verdict)
        ]

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return 1 if self.ours(SLOWER) or self.lost or self.grown else 0


def main(new: Path, old: Path, *, force: bool, everything: bool) -> int:
    """Compare two files and print the outcome; ``everything``: the change of every row.

    Returns 1 if we became slower by more than noise, lost a time or take more memory.

    Raises:
        OSError: a file cannot be read.
        ValueError: one is not a result file, or they cannot be compared.
    """
    found = compare(results.load(new), results.load(old), force=force)
    print(f"NEW: {new}\nOLD: {old}\n{render(found, everything=everything)}")
    return found.status


def refuse(new: Mapping[str, Any], old: Mapping[str, Any], *, force: bool = False) -> list[str]:
    """Check from the facts alone that two runs can be compared; returns the differences that were forced.

    Raises:
        ValueError: they differ in what times depend on, and ``force`` is not set.
    """
    both = [(title, *(_fact(facts, path) for facts in (new, old))) for title, path in _FACTS.items()]
    found = [f"{title}: {now} and {was}" for title, now, was in both if now != was]
    if found and not force:
        raise ValueError(
            f"NEW and OLD must not differ in what times depend on, got {'; '.join(found)}. With --force, our "
            "times are compared in multiples of the peers' times"
        )
    return found


def _fact(facts: Any, path: Sequence[str]) -> Any:
    for name in path:
        facts = facts.get(name) if isinstance(facts, Mapping) else None
    return facts


def compare(new: Run, old: Run, *, force: bool = False) -> Comparison:
    """Compare two runs. Cells in one of them alone are counted and left out.

    Raises:
        ValueError: see :func:`refuse`; or no cell is in both, or there is neither a peer nor a ceiling from
            which the machine's drift could be told.
    """
    forced = refuse(new.facts, old.facts, force=force)
    after, before = _rows(new), _rows(old)
    here, there = (
        {row.label: None for row in rows.values() if row.role != CEILING} for rows in (after, before)
    )
    common = [cell for cell in here if cell in there]
    if not common:
        some = [f"{len(cells)} such as {next(iter(cells), None)}" for cells in (here, there)]
        raise ValueError(f"NEW and OLD must share a cell, NEW has {some[0]} and OLD {some[1]}")
    pairs, lost = {}, []
    for key, was in before.items():
        now = after.get(key)
        if (was.label not in here and was.role != CEILING) or not _usable(was):
            continue
        if now is not None and _usable(now):
            pairs[key] = (was, now)
        elif _role(was) == OURS and (now is None or now.median is None):
            lost.append((was, "it took no part" if now is None else f"{now.status}: {now.reason}"))
    changes = judge(without_drift(_change(was, now) for was, now in pairs.values()))
    return Comparison(
        pairs,
        changes,
        # A group is not reported because of a cell that is reported anyway.
        judge(_means(each for each in changes if each.verdict == SAME)),
        lost,
        [pair for pair in pairs.values() if _has_grown(*pair)],
        len(common),
        (len(here) - len(common), len(there) - len(common)),
        forced,
    )


def _rows(run: Run) -> dict[tuple[str, str], Row]:
    """All rows by cell and contender."""
    found: dict[tuple[str, str], Row] = {}
    for row in run.rows:
        if (row.label, row.contender) in found and row.role != CEILING:
            raise ValueError(f"a run must have a row once, {row.contender} is there twice in {row.label}")
        found[row.label, row.contender] = row
    return found


def _usable(row: Row) -> bool:
    return row.rounds >= _LEAST_ROUNDS and bool(row.median)


def _role(row: Row) -> str:
    """Ours are all backends of vt_fast."""
    return {CEILING: CEILING, PEER: PEER, REPLACED: PEER}.get(row.role, OURS)


def _has_grown(was: Row, now: Row) -> bool:
    if _role(was) != OURS or was.extra_bytes is None or now.extra_bytes is None:
        return False
    return now.extra_bytes > was.extra_bytes + max(_MEMORY_SHARE * was.extra_bytes, _MEMORY_BYTES)


def _change(was: Row, now: Row) -> Change:
    # A ceiling may do more work in a repetition than it did.
    work = (now.work or 1.0) / (was.work or 1.0) if now.role == CEILING else 1.0
    where = ", ".join(filter(None, (place("", now.threads) or "GPU", "plain calls" * (now.clock == "calls"))))
    case = now.mode if now.mode in ("models", "layers") else now.case
    return Change(
        now.label,
        f"{case} {now.which}, {now.dtype}, {where}",
        # Unchanged code scatters more on two threads than on one.
        f"first calls, {where}" if is_first_call(now) else where,
        now.contender,
        _role(now),
        math.log((now.median or 1.0) / (was.median or 1.0) / work),
        math.hypot(_standard_error(was), _standard_error(now)),
    )


def _standard_error(row: Row) -> float:
    """Of a median, relative to it, from the 20 % and 80 % quantiles, as for normal numbers."""
    if not row.median or row.low is None or row.high is None:
        return 0.0
    deviation = (row.high - row.low) / row.median / (2 * _NORMAL.inv_cdf(0.8))
    return math.sqrt(math.pi / 2 / row.rounds) * deviation


def without_drift(changes: Iterable[Change]) -> list[Change]:
    """The changes of our rows and of the controls, with their drift.

    Controls are the peers; in a stratum without peers, the ceilings. A change without another control in its
    cell gets the median drift of its stratum.

    Raises:
        ValueError: a stratum has no control.
    """
    strata: dict[str, list[Change]] = defaultdict(list)
    for each in changes:
        strata[each.stratum].append(each)
    found: list[Change] = []
    for stratum, members in strata.items():
        ours = [each for each in members if each.role == OURS]
        controls = [each for each in members if each.role == PEER]
        controls = controls or [each._replace(role=PEER) for each in members if each.role == CEILING]
        if ours and not controls:
            raise ValueError(
                f"{stratum}: a peer or a ceiling must have times in both files, to tell the machine's drift "
                "from a change of the code"
            )
        cells: dict[str, list[Change]] = defaultdict(list)
        for each in controls:
            cells[each.cell].append(each)
        overall = statistics.median(each.raw for each in controls) if controls else 0.0
        for each in (*ours, *controls):
            others = [other.raw for other in cells[each.cell] if other is not each]
            found.append(each._replace(drift=statistics.median(others) if others else overall))
    return found


def _means(changes: Iterable[Change]) -> list[Change]:
    """The mean change of each contender in each group of at least two cells."""
    groups: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for each in changes:
        groups[each.group, each.name].append(each)
    return [
        members[0]._replace(
            cell=group,
            raw=statistics.fmean(each.raw for each in members),
            drift=statistics.fmean(each.drift for each in members),
            error=math.hypot(*(each.error for each in members)) / len(members),
            cells=len(members),
        )
        for (group, _), members in groups.items()
        if len(members) > 1
    ]


def judge(changes: Sequence[Change]) -> list[Change]:
    """Each change with its noise; those without a control in their stratum are left out."""
    number = sum(each.role == OURS for each in changes)
    factor = _NORMAL.inv_cdf(1 - _MISTAKES / 2 / max(number, 1))
    controls: dict[str, list[float]] = defaultdict(list)
    for each in changes:
        if each.role == PEER:
            controls[each.stratum].append(each.left * math.sqrt(each.cells))
    scatters = {
        stratum: max(scatter(left), _LEAST_SCATTER if len(left) < _FEW else 0.0)
        for stratum, left in controls.items()
    }
    return [
        each._replace(noise=factor * math.hypot(each.error, scatters[each.stratum] / math.sqrt(each.cells)))
        for each in changes
        if each.stratum in scatters
    ]


def scatter(values: Iterable[float]) -> float:
    """A standard deviation around 0 that fits the tail: the 99 % quantile, as for normal numbers.

    Of few values the largest is taken, as the quantile that it is of that many.

    Example:
        >>> round(scatter([-0.3, 0.1, 0.2]), 4)
        0.2608
    """
    sizes = sorted(map(abs, values))
    rank = min(math.ceil(_TAIL * (len(sizes) + 1)), len(sizes))
    return sizes[rank - 1] / _NORMAL.inv_cdf((1 + rank / (len(sizes) + 1)) / 2)


def render(found: Comparison, *, everything: bool = False) -> str:
    """The comparison as text; ``everything``: the change of every row."""
    parts = ["\n".join(_head(found)), _table(found, [each for each in found.groups if each.role == OURS])]
    parts += [_table(found, found.changes)] if everything else []
    return "\n\n".join(filter(None, [*parts, "\n".join(_reported(found))]))


def _head(found: Comparison) -> Iterator[str]:
    yield f"{found.cells} cells are in both, {found.alone[0]} in NEW alone, {found.alone[1]} in OLD alone."
    yield from (f"Forced: NEW and OLD differ in {each}." for each in found.forced)
    yield (
        "Times of NEW in multiples of OLD's. The machine's drift is the median change of the peers of the "
        "cell, and is taken off."
    )
    for stratum in dict.fromkeys(each.stratum for each in found.changes):
        drifts = {
            "peers": [each.raw for each in found.changes if (each.stratum, each.role) == (stratum, PEER)]
        }
        for was, now in found.pairs.values():
            change = _change(was, now)
            if (change.stratum, change.role) == (stratum, CEILING):
                drifts.setdefault(now.case, []).append(change.raw)
        medians = {name: math.exp(statistics.median(raws)) for name, raws in drifts.items()}
        yield f"  {stratum}: {', '.join(f'{name} {ratio:.3f}' for name, ratio in medians.items())}"


def _table(found: Comparison, changes: Sequence[Change]) -> str:
    records = []
    for each in changes:
        pair = found.pairs.get((each.cell, each.name))
        records.append(
            {
                "cell": each.cell,
                "contender": each.name,
                **({"times": _times(*pair)} if pair else {"cells": str(each.cells)}),
                "NEW / OLD": f"{math.exp(each.raw):.3f}",
                "drift": f"{math.exp(each.drift):.3f}",
                "without it": f"{math.exp(each.left):.3f}",
                "noise": _band(each.noise),
                "verdict": "" if each.verdict == SAME else each.verdict,
            }
        )
    return as_text(table("", records)[1])


def _reported(found: Comparison) -> Iterator[str]:
    ours = [each for each in found.changes if each.role == OURS]
    peers = [each for each in found.changes if each.role == PEER]
    if ours:
        words = [each.verdict for each in ours]
        yield (
            f"Of our {len(ours)} times, {words.count(SLOWER)} are slower and {words.count(FASTER)} faster by "
            f"more than noise (in the median {_band(statistics.median(each.noise for each in ours))}); of "
            f"the peers' {len(peers)}, {sum(each.verdict != SAME for each in peers)} differ by more."
        )
    else:
        yield "None of our times is in both."
    for title, verdict in (("Faster:", FASTER), ("REGRESSIONS:", SLOWER)):
        changes = found.ours(verdict)
        yield from [title] if changes else []
        for each in changes:
            pair = found.pairs.get((each.cell, each.name))
            why = (
                f"{_times(*pair)}, drift {math.exp(each.drift):.2f}"
                if pair
                else f"mean of {each.cells} cells"
            )
            yield f"  {each.cell}, {each.name}: {math.exp(each.left):.2f}, noise {_band(each.noise)} ({why})"
    yield from ["MORE MEMORY:"] if found.grown else []
    for was, now in found.grown:
        sizes = " -> ".join(f"{(row.extra_bytes or 0) / 1e6:.3g} MB" for row in (was, now))
        yield f"  {was.label}, {was.contender}: {sizes}"
    yield from ["WITHOUT A TIME NOW:"] if found.lost else []
    yield from (f"  {row.label}, {row.contender}: {why}" for row, why in found.lost)


def _times(was: Row, now: Row) -> str:
    return " -> ".join(f"{digits(1e3 * (row.median or 0.0))} ms ({spread(row)})" for row in (was, now))


def _band(log: float) -> str:
    """The ratios that are noise."""
    return f"{math.exp(-log):.2f} to {math.exp(log):.2f}"

"""Compare two result files: what became slower or faster by more than noise, lost its time or takes more memory.

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
   far out.
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
from benchmarks.results import CEILING, OURS, PEER, Row, Run

SLOWER, FASTER, SAME = "slower", "faster", "same"
# How often a comparison may report a change by mistake.
_MISTAKES = 0.05
# The quantile of the peers' scatter that sets its scale.
_TAIL = 0.99
# Fewer times say nothing about a quantile.
_LEAST_ROUNDS = 3
# Memory may grow by this share, or by this many bytes: what an allocator rounds to.
_MEMORY_SHARE, _MEMORY_BYTES = 0.02, 1 << 16
_NORMAL = NormalDist()
# Times depend on these facts: where each is found, and what it is called.
_FACTS = (
    (("machine", "devices", "cpu"), "CPU"),
    (("machine", "devices", "cores"), "number of cores"),
    (("machine", "devices", "instructions"), "instruction set"),
    (("machine", "gpu", "name"), "GPU"),
    (("machine", "versions", "torch"), "torch"),
    (("settings", "quick"), "--quick"),
    (("settings", "tf32"), "--tf32"),
)


class Change(NamedTuple):
    """How a time, or the mean of several, differs between two runs, in natural logs.

    ``raw``: of NEW's median over OLD's. ``drift``: the machine's part of it. ``error``: standard error of the
    medians. ``group``: cells that are averaged. ``stratum``: times that scatter alike from run to run.
    """

    cell: str
    group: str
    stratum: str
    name: str
    role: str
    raw: float
    error: float
    drift: float = 0.0
    cells: int = 1

    @property
    def left(self) -> float:
        """What the machine does not explain."""
        return self.raw - self.drift


class Verdict(NamedTuple):
    """A change and the noise that it must exceed, a log too."""

    change: Change
    noise: float

    @property
    def word(self) -> str:
        """Slower, faster, or the same as far as one can tell."""
        if abs(self.change.left) <= self.noise:
            return SAME
        return SLOWER if self.change.left > 0 else FASTER


class Comparison(NamedTuple):
    """Two runs compared.

    ``verdicts`` are of single cells, ``groups`` of means over cells that are the same one by one. ``lost``: our
    rows that had a time in OLD and have none, and why. ``grown``: our rows that take more memory. ``alone``:
    how many cells are in NEW or OLD only. ``forced``: differences in spite of which they were compared.
    """

    pairs: Mapping[tuple[str, str], tuple[Row, Row]]
    verdicts: list[Verdict]
    groups: list[Verdict]
    lost: list[tuple[Row, str]]
    grown: list[tuple[Row, Row]]
    cells: int
    alone: tuple[int, int]
    forced: list[str]

    def ours(self, word: str) -> list[Verdict]:
        """Our rows with that verdict, then our groups, the largest changes first."""
        return [
            each
            for part in (self.verdicts, self.groups)
            for each in sorted(part, key=lambda each: -abs(each.change.left))
            if each.change.role == OURS and each.word == word
        ]

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return 1 if self.ours(SLOWER) or self.lost or self.grown else 0


def main(new: Path, old: Path, *, force: bool, everything: bool) -> int:
    """Compare two files and print the outcome; ``everything``: the change of every row.

    Returns 1 if a time of ours is slower by more than noise or gone, or if ours takes more memory.

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
    found = []
    for path, title in _FACTS:
        now, was = (_fact(facts, path) for facts in (new, old))
        if now != was:
            found.append(f"{title}: {now} and {was}")
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
    cells = [
        dict.fromkeys(row.label for row in rows.values() if row.role != CEILING) for rows in (after, before)
    ]
    common = [cell for cell in cells[0] if cell in cells[1]]
    if not common:
        raise ValueError(
            f"NEW and OLD must share a cell, NEW has {_some(cells[0])} and OLD {_some(cells[1])}"
        )
    pairs, lost = {}, []
    for key, was in before.items():
        now = after.get(key)
        if (was.label not in cells[0] and was.role != CEILING) or not _usable(was):
            continue
        if now is not None and _usable(now):
            pairs[key] = (was, now)
        elif _role(was) == OURS and (now is None or now.median is None):
            lost.append((was, "it took no part" if now is None else f"{now.status}: {now.reason}"))
    verdicts = judge(without_drift(_change(was, now) for was, now in pairs.values()))
    return Comparison(
        pairs,
        verdicts,
        # A group is not reported because of a cell that is reported anyway.
        judge(_means(each.change for each in verdicts if each.word == SAME)),
        lost,
        [pair for pair in pairs.values() if _has_grown(*pair)],
        len(common),
        (len(cells[0]) - len(common), len(cells[1]) - len(common)),
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


def _some(cells: Mapping[str, None]) -> str:
    return f"{len(cells)} such as {next(iter(cells))}" if cells else "none"


def _role(row: Row) -> str:
    """Ours are all backends of vt_fast."""
    return row.role if row.role in (PEER, CEILING) else OURS


def _has_grown(was: Row, now: Row) -> bool:
    if _role(was) != OURS or was.extra_bytes is None or now.extra_bytes is None:
        return False
    return now.extra_bytes > was.extra_bytes + max(_MEMORY_SHARE * was.extra_bytes, _MEMORY_BYTES)


def _change(was: Row, now: Row) -> Change:
    # A ceiling may do more work in a repetition than it did.
    seconds = [
        (row.median or 0.0) / (row.work if row.work and row.role == CEILING else 1) for row in (now, was)
    ]
    place = "GPU" if now.threads is None else f"{now.threads} thread{'s' * (now.threads != 1)}"
    kind = ", plain calls" if now.clock == "calls" else ""
    first = "first calls, " if now.case.startswith("first call") else ""
    what = now.mode if now.mode in ("models", "layers") else now.case
    return Change(
        now.label,
        f"{what} {now.which}, {now.dtype}, {place}{kind}",
        # Unchanged code scatters more on two threads than on one.
        f"{first}{place}{kind}",
        now.contender,
        _role(now),
        math.log(seconds[0] / seconds[1]),
        math.hypot(_standard_error(was), _standard_error(now)),
    )


def _standard_error(row: Row) -> float:
    """Of a median, relative to it, from the 20 % and 80 % quantiles, as for normal numbers."""
    if not row.median or row.low is None or row.high is None:
        return 0.0
    deviation = (row.high - row.low) / row.median / (2 * _NORMAL.inv_cdf(0.8))
    return math.sqrt(math.pi / 2 / row.rounds) * deviation


def without_drift(changes: Iterable[Change]) -> list[Change]:
    """The changes of ours and of the controls, with their drift.

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


def judge(changes: Sequence[Change]) -> list[Verdict]:
    """Each change with its noise; those without a control in their stratum are left out."""
    number = sum(each.role == OURS for each in changes)
    factor = _NORMAL.inv_cdf(1 - _MISTAKES / 2 / max(number, 1))
    controls: dict[str, list[float]] = defaultdict(list)
    for each in changes:
        if each.role == PEER:
            controls[each.stratum].append(each.left * math.sqrt(each.cells))
    scatters = {stratum: scatter(left) for stratum, left in controls.items()}
    return [
        Verdict(each, factor * math.hypot(each.error, scatters[each.stratum] / math.sqrt(each.cells)))
        for each in changes
        if each.stratum in scatters
    ]


def scatter(values: Iterable[float]) -> float:
    """A standard deviation around 0 that fits the tail: the 99 % quantile of the sizes, as for normal numbers.

    Of few values it is the largest, taken as the quantile that the largest of that many is.

    Example:
        >>> round(scatter([-0.3, 0.1, 0.2]), 4)
        0.2608
    """
    sizes = sorted(map(abs, values))
    rank = min(math.ceil(_TAIL * (len(sizes) + 1)), len(sizes))
    return sizes[rank - 1] / _NORMAL.inv_cdf((1 + rank / (len(sizes) + 1)) / 2)


def render(found: Comparison, *, everything: bool = False) -> str:
    """The comparison as text; ``everything``: the change of every row."""
    parts = ["\n".join(_head(found)), _table(found, [v for v in found.groups if v.change.role == OURS])]
    if everything:
        parts.append(_table(found, found.verdicts))
    parts.append("\n".join(_reported(found)))
    return "\n\n".join(filter(None, parts))


def _head(found: Comparison) -> Iterator[str]:
    yield f"{found.cells} cells are in both, {found.alone[0]} in NEW alone, {found.alone[1]} in OLD alone."
    for each in found.forced:
        yield f"Forced: NEW and OLD differ in {each}."
    yield (
        "Times of NEW in multiples of OLD's. The machine's drift is the median change of the peers of the "
        "cell, and is taken off."
    )
    for stratum in dict.fromkeys(each.change.stratum for each in found.verdicts):
        controls = [v.change for v in found.verdicts if (v.change.stratum, v.change.role) == (stratum, PEER)]
        drifts = {"peers": math.exp(statistics.median(each.raw for each in controls))}
        for was, now in found.pairs.values():
            change = _change(was, now)
            if (change.role, change.stratum) == (CEILING, stratum):
                drifts[" ".join(filter(None, (now.case, now.dtype, now.shape)))] = math.exp(change.raw)
        sizes = sorted(abs(each.left) for each in controls)
        middle, far = (math.expm1(sizes[min(int(p * len(sizes)), len(sizes) - 1)]) for p in (0.5, 0.95))
        beyond = statistics.fmean(abs(each.left) > 2 * each.error for each in controls)
        yield f"  {stratum}: {', '.join(f'{name} {ratio:.3f}' for name, ratio in drifts.items())}"
        yield (
            f"    A peer differs from the others of its cell by {middle:.1%} in the median, by up to {far:.1%} "
            f"in 95 of 100 cells, and in {beyond:.0%} by over twice the standard error of its times."
        )


def _table(found: Comparison, verdicts: Sequence[Verdict]) -> str:
    from benchmarks.report import as_text

    records = []
    for each in verdicts:
        change = each.change
        pair = found.pairs.get((change.cell, change.name))
        records.append(
            {
                "cell": change.cell,
                "contender": change.name,
                **({"times": _times(*pair)} if pair else {"cells": str(change.cells)}),
                "NEW / OLD": f"{math.exp(change.raw):.3f}",
                "drift": f"{math.exp(change.drift):.3f}",
                "without it": f"{math.exp(change.left):.3f}",
                "noise": _band(each.noise),
                "": "" if each.word == SAME else each.word,
            }
        )
    return as_text(records)


def _reported(found: Comparison) -> Iterator[str]:
    ours = [each for each in found.verdicts if each.change.role == OURS]
    peers = [each for each in found.verdicts if each.change.role == PEER]
    if ours:
        words = [each.word for each in ours]
        yield (
            f"Of our {len(ours)} times, {words.count(SLOWER)} are slower and {words.count(FASTER)} faster by more "
            f"than noise, which is {_band(statistics.median(each.noise for each in ours))} in the median; of the "
            f"peers' {len(peers)}, {sum(each.word != SAME for each in peers)} differ by more."
        )
    else:
        yield "No time of ours is in both."
    for title, word in (("Faster", FASTER), ("REGRESSIONS", SLOWER)):
        if found.ours(word):
            yield f"{title}:"
            yield from (f"  {_line(each, found)}" for each in found.ours(word))
    if found.grown:
        yield "MORE MEMORY:"
        for was, now in found.grown:
            sizes = [f"{(row.extra_bytes or 0) / 1e6:.3g} MB" for row in (was, now)]
            yield f"  {was.label}, {was.contender}: {' -> '.join(sizes)}"
    if found.lost:
        yield "WITHOUT A TIME NOW:"
        yield from (f"  {row.label}, {row.contender}: {why}" for row, why in found.lost)


def _line(each: Verdict, found: Comparison) -> str:
    change = each.change
    text = f"{change.cell}, {change.name}: {math.exp(change.left):.2f}, noise {_band(each.noise)}"
    if change.cells > 1:
        return f"{text} (mean of {change.cells} cells)"
    return f"{text} ({_times(*found.pairs[change.cell, change.name])}, drift {math.exp(change.drift):.2f})"


def _times(was: Row, now: Row) -> str:
    from benchmarks.report import duration, spread

    return " -> ".join(f"{duration(row.median)} ({spread(row)})" for row in (was, now))


def _band(log: float) -> str:
    """The ratios that are noise."""
    return f"{math.exp(-log):.2f} to {math.exp(log):.2f}"

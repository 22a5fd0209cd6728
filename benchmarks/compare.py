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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import results
from benchmarks.plots import digits
from benchmarks.report import as_text, spread, table
from benchmarks.results import CEILING, PEER, REPLACED, Run

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SLOWER, FASTER, SAME = "slower", "faster", ""
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
# Modes that have too few cells of each case.
_TOGETHER = ("models", "layers", "hosts", "switches")
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


class Comparison(NamedTuple):
    """Two runs compared.

    ``changes`` are of single cells, ``groups`` of means over cells that are the same one by one. Both say
    whether they are of a peer, over how many cells, and the verdict; and in natural logs the raw change, the
    drift, what is left of it without, and the noise. ``lost``: our rows that had a time in OLD and have none.
    ``grown``: our rows that take more memory. ``cells``: how many are in both, in NEW alone, in OLD alone.
    ``forced``: differences that were overruled.
    """

    changes: DataFrame
    groups: DataFrame
    lost: DataFrame
    grown: DataFrame
    cells: tuple[int, int, int]
    forced: list[str]

    def ours(self, verdict: str) -> DataFrame:
        """Our rows with that verdict, then our groups, the largest changes first."""
        import pandas as pd

        parts = [
            part[~part.peer & (part.verdict == verdict)].sort_values("left", key=lambda left: -left.abs())
            for part in (self.changes, self.groups)
        ]
        return pd.concat(parts)

    @property
    def status(self) -> int:
        """Exit status: 1 if we are slower by more than noise, lost a time or take more memory."""
        return int(any(map(len, (self.ours(SLOWER), self.lost, self.grown))))


def main(new: Path, old: Path, *, force: bool, everything: bool) -> int:
    """Compare two files and print the outcome, of every row if wanted; returns the exit status."""
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
        ValueError: see :func:`refuse`; or no cell is in both, or there is no peer from which the machine's
            drift could be told.
    """
    forced = refuse(new.facts, old.facts, force=force)
    after, before = (results.frame(row for row in run.rows if row.role != CEILING) for run in (new, old))
    here, there = ({*data.cell} for data in (after, before))
    if not here & there:
        some = [f"{data.cell.nunique()} such as {next(iter(data.cell), None)}" for data in (after, before)]
        raise ValueError(f"NEW and OLD must share a cell, NEW has {some[0]} and OLD {some[1]}")
    pairs = before[before.cell.isin(here)].merge(
        after, how="left", on=["cell", "contender"], suffixes=("_old", "_new")
    )
    pairs["peer"] = pairs.role_old.isin([PEER, REPLACED])
    pairs = pairs[pairs.rounds_old >= _LEAST_ROUNDS]
    lost = pairs[~pairs.peer & pairs.median_new.isna()]
    timed = pairs[pairs.rounds_new >= _LEAST_ROUNDS]
    growth = timed.extra_bytes_new - timed.extra_bytes_old
    allowed = (_MEMORY_SHARE * timed.extra_bytes_old).clip(lower=_MEMORY_BYTES)
    changes = _judged(_changes(timed))
    # A group is not reported because of a cell that is reported anyway.
    groups = _judged(_means(changes[changes.verdict == SAME]))
    counts = len(here & there), len(here - there), len(there - here)
    return Comparison(changes, groups, lost, timed[~timed.peer & (growth > allowed)], counts, forced)


def _changes(pairs: DataFrame) -> DataFrame:
    """The change of each time, and the machine's part of it.

    Raises:
        ValueError: there is no peer on some threads or by some clock.
    """
    import numpy as np

    pairs = pairs.assign(
        cells=1,
        # Unchanged code scatters more on two threads than on one.
        where=pairs.where_new.replace("", "GPU")
        + np.where(pairs.case_new.str.startswith("first call"), ", first calls", ""),
        group=pairs.case_new.where(~pairs.mode_new.isin(_TOGETHER), pairs.mode_new),
        raw=np.log(pairs.median_new / pairs.median_old),
        error=np.hypot(_standard_error(pairs, "_old"), _standard_error(pairs, "_new")),
        drift=math.nan,
    )
    pairs["group"] += " " + pairs.which_new + ", " + pairs.dtype_new + ", " + pairs["where"]
    for _, part in pairs.groupby("cell"):
        peers = part[part.peer].raw
        pairs.loc[part.index, "drift"] = [peers.drop(each, errors="ignore").median() for each in part.index]
    # Without another peer in its cell, that of all cells.
    pairs["drift"] = pairs.drift.fillna(pairs["where"].map(pairs[pairs.peer].groupby("where").raw.median()))
    for where in pairs[pairs.drift.isna()]["where"]:
        raise ValueError(
            f"{where}: a peer must have times in both files, to tell drift from a change of the code"
        )
    return pairs


def _standard_error(pairs: DataFrame, run: str) -> Series:
    """Of a median, relative to it, from the 20 % and 80 % quantiles, as for normal numbers."""
    median, low, high, rounds = (pairs[name + run] for name in ("median", "low", "high", "rounds"))
    return (math.pi / 2 / rounds) ** 0.5 * (high - low) / median / (2 * _NORMAL.inv_cdf(0.8))


def _means(changes: DataFrame) -> DataFrame:
    """The mean change of each contender in each group of at least two cells."""
    means = changes.groupby(["group", "contender"], sort=False).agg(
        peer=("peer", "first"),
        where=("where", "first"),
        cells=("raw", "size"),
        raw=("raw", "mean"),
        drift=("drift", "mean"),
        error=("error", lambda errors: math.hypot(*errors) / len(errors)),
    )
    return means[means.cells > 1].reset_index().rename(columns={"group": "cell"})


def _judged(changes: DataFrame) -> DataFrame:
    """Each change without the drift, what it must exceed to be one, and whether it does."""
    import numpy as np

    factor = _NORMAL.inv_cdf(1 - _MISTAKES / 2 / max((~changes.peer).sum(), 1))
    left, root = changes.raw - changes.drift, changes.cells**0.5
    scatters = (left * root)[changes.peer].groupby(changes["where"]).agg(scatter)
    noise = factor * np.hypot(changes.error, changes["where"].map(scatters) / root)
    verdict = np.select([left > noise, left < -noise], [SLOWER, FASTER], SAME)
    return changes.assign(left=left, noise=noise, verdict=verdict).dropna(subset="noise")


def scatter(values: Iterable[float]) -> float:
    """A standard deviation around 0 that fits the tail: the 99 % quantile, as for normal numbers.

    Of few values the largest is taken, as the quantile that it is of that many; it is at least 5 %.

    Example:
        >>> round(scatter([-0.3, 0.1, 0.2]), 4)
        0.2608
    """
    sizes = sorted(map(abs, values))
    rank = min(math.ceil(_TAIL * (len(sizes) + 1)), len(sizes))
    found = sizes[rank - 1] / _NORMAL.inv_cdf((1 + rank / (len(sizes) + 1)) / 2)
    return max(found, _LEAST_SCATTER if len(sizes) < _FEW else 0.0)


def render(found: Comparison, *, everything: bool = False) -> str:
    """The comparison as text; ``everything``: the change of every row."""
    parts = ["\n".join(_head(found)), _table(found.groups[~found.groups.peer])]
    parts += [_table(found.changes)] if everything else []
    for title, verdict in (("Faster", FASTER), ("REGRESSIONS", SLOWER)):
        changes = found.ours(verdict)
        parts += [f"{title}:\n{_table(changes)}"] if len(changes) else []
    sizes = (found.grown[["extra_bytes_old", "extra_bytes_new"]] / 1e6).map("{:.3g} MB".format)
    reasons = (found.lost.status_new + ": " + found.lost.reason_new).fillna("it took no part")
    for title, rows, texts in (
        ("MORE MEMORY", found.grown, sizes.agg(" -> ".join, axis=1)),
        ("WITHOUT A TIME NOW", found.lost, reasons),
    ):
        lines = rows.cell + ", " + rows.contender + ": " + texts if len(rows) else []
        parts += ["\n  ".join([f"{title}:", *lines])] if len(rows) else []
    return "\n\n".join(filter(None, parts))


def _head(found: Comparison) -> Iterator[str]:
    yield "{} cells are in both, {} in NEW alone, {} in OLD alone.".format(*found.cells)
    yield from (f"Forced: NEW and OLD differ in {each}." for each in found.forced)
    yield (
        "Times of NEW in multiples of OLD's. The machine's drift is the median change of the peers of the "
        "cell, and is taken off."
    )
    peers, ours = found.changes[found.changes.peer], found.changes[~found.changes.peer]
    for where, raw in peers.groupby("where", sort=False).raw.median().items():
        yield f"  {where}: peers {math.exp(raw):.3f}"
    if ours.empty:
        yield "None of our times is in both."
        return
    counts = ours.verdict.value_counts()
    yield (
        f"Of our {len(ours)} times, {counts.get(SLOWER, 0)} are slower and {counts.get(FASTER, 0)} faster by "
        f"more than noise (in the median {_band(ours.noise.median())}); of the peers' {len(peers)}, "
        f"{(peers.verdict != SAME).sum()} differ by more."
    )


def _table(changes: DataFrame) -> str:
    columns = {
        "cell": changes.cell,
        "contender": changes.contender,
        "times": [_times(row) for row in changes.itertuples()],
        "NEW / OLD": changes.raw.map(_multiple),
        "drift": changes.drift.map(_multiple),
        "without it": changes.left.map(_multiple),
        "noise": changes.noise.map(_band),
        "verdict": changes.verdict,
    }
    return as_text(table("", changes.assign(**columns)[[*columns]])[1])


def _times(row: Any) -> str:
    if row.cells > 1:
        return f"mean of {row.cells} cells"
    old = f"{digits(1e3 * row.median_old)} ms ({spread(row.median_old, row.low_old, row.high_old)})"
    return f"{old} -> {digits(1e3 * row.median_new)} ms ({spread(row.median_new, row.low_new, row.high_new)})"


def _multiple(log: float) -> str:
    return f"{math.exp(log):.3f}"


def _band(log: float) -> str:
    """The ratios that are noise."""
    return f"{math.exp(-log):.2f} to {math.exp(log):.2f}"

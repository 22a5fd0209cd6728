"""A comparison as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from benchmarks.comparison import Comparison, ours_that_are
from benchmarks.figures import CEILING, CONTROL, OURS, Figure
from benchmarks.noise import FASTER, SAME, SLOWER, Change, Verdict
from benchmarks.tables import table
from benchmarks.timing import spread_text


def render(found: Comparison, *, everything: bool = False) -> str:
    """The comparison as text; ``everything``: every figure of every cell, the peers' too."""
    parts = ["\n".join(_head(found)), _groups(found)]
    if everything:
        parts.append(_all(found))
    parts.append("\n".join(_named(found)))
    return "\n\n".join(filter(None, parts))


def _head(found: Comparison) -> Iterator[str]:
    yield f"{found.cells} cells are in both, {found.alone[0]} in NEW alone, {found.alone[1]} in OLD alone."
    for each in found.forced:
        yield f"Forced: NEW and OLD differ in {each}."
    yield (
        "Times of NEW in multiples of OLD's. The machine's drift is what the peers of the cell have changed "
        "by, and is taken off."
    )
    for stratum in dict.fromkeys(each.change.stratum for each in found.verdicts):
        part = [each.change for each in found.verdicts if each.change.stratum == stratum]
        controls = [each for each in part if each.role == CONTROL]
        if controls:
            yield f"  {stratum}: {_drift(found, stratum, controls)}"


def _drift(found: Comparison, stratum: str, controls: list[Change]) -> str:
    raws = sorted(math.exp(each.raw) for each in controls)
    text = f"peers {statistics.median(raws):.3f}"
    ceilings: dict[str, list[float]] = {}
    for was, now in found.pairs.values():
        if was.role == CEILING and was.stratum == stratum:
            ratio = statistics.median(now.seconds) / statistics.median(was.seconds)
            ceilings.setdefault(was.name, []).append(ratio)
    for name, ratios in ceilings.items():
        text += f", {name} {statistics.median(ratios):.3f}"
    sizes = sorted(abs(each.left) for each in controls)
    parts = [_percent(sizes[min(int(share * len(sizes)), len(sizes) - 1)]) for share in (0.5, 0.95)]
    beyond = statistics.fmean(abs(each.left) > 2 * each.error for each in controls)
    return (
        f"{text}; a peer differs from the others of its cell by {parts[0]} in the median, by up to "
        f"{parts[1]} in 95 of 100, in {beyond:.0%} of cells by over twice the standard error of its raw times"
    )


def _groups(found: Comparison) -> str:
    rows = [_row(each, each.change.cell, str(each.change.cells)) for each in found.groups if _is_ours(each)]
    head = ["mean of cells not named below", "who", "cells", "NEW / OLD", "drift", "without it", "noise", ""]
    return table(head, rows) if rows else ""


def _all(found: Comparison) -> str:
    rows = []
    for each in found.verdicts:
        was, now = found.pairs[each.change.cell, each.change.name]
        rows.append(_row(each, each.change.cell, f"{_time(was)} -> {_time(now)}"))
    head = ["cell", "who", "median (20 % to 80 %)", "NEW / OLD", "drift", "without it", "noise", ""]
    return table(head, rows)


def _row(each: Verdict, label: str, detail: str) -> list[str]:
    change = each.change
    ratios = [f"{math.exp(value):.3f}" for value in (change.raw, change.drift, change.left)]
    return [label, change.name, detail, *ratios, _band(each.noise), "" if each.word == SAME else each.word]


def _named(found: Comparison) -> Iterator[str]:
    ours = [each for each in found.verdicts if _is_ours(each)]
    peers = [each for each in found.verdicts if each.change.role == CONTROL]
    if ours:
        yield (
            f"Of {len(ours)} figures of ours, {len(ours_that_are(SLOWER, ours))} are slower and "
            f"{len(ours_that_are(FASTER, ours))} faster by more than noise, which is "
            f"{_band(statistics.median(each.noise for each in ours))} in the median; "
            f"of {len(peers)} of peers, {sum(each.word != SAME for each in peers)} differ by more."
        )
    else:
        yield "No figure of ours is in both."
    for title, word in (("Faster", FASTER), ("REGRESSIONS", SLOWER)):
        both = ours_that_are(word, found.verdicts) + ours_that_are(word, found.groups)
        if both:
            yield f"{title}:"
            yield from (f"  {_line(each, found)}" for each in both)
    if found.grown:
        yield "MORE MEMORY:"
        for grown in found.grown:
            yield f"  {grown.cell}, {grown.name}: {grown.old / 1e6:.3g} MB -> {grown.new / 1e6:.3g} MB"
    if found.lost:
        yield "WITHOUT A FIGURE NOW:"
        yield from (f"  {each.cell}, {each.name}: {each.why}" for each in found.lost)


def _line(each: Verdict, found: Comparison) -> str:
    change = each.change
    text = f"{change.cell}, {change.name}: {math.exp(change.left):.2f}, noise {_band(each.noise)}"
    if change.cells > 1:
        return f"{text} (mean of {change.cells} cells)"
    was, now = found.pairs[change.cell, change.name]
    return f"{text} ({_time(was)} -> {_time(now)}, drift {math.exp(change.drift):.2f})"


def _is_ours(each: Verdict) -> bool:
    return each.change.role == OURS


def _time(figure: Figure) -> str:
    median = statistics.median(figure.seconds)
    text = f"{median * 1e3:.3g} ms" if median >= 1e-3 else f"{median * 1e6:.3g} us"
    return f"{text} ({spread_text(figure.seconds)})"


def _percent(log: float) -> str:
    """How much longer a factor of so much makes a time."""
    return f"{math.expm1(log):.1%}"


def _band(log: float) -> str:
    """The ratios that are noise."""
    return f"{math.exp(-log):.2f} to {math.exp(log):.2f}"

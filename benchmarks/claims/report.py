"""docs/claims.md: paired differences with intervals, a sentence for each claim, attention and curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.claims.data import TASKS, TEST
from benchmarks.claims.plan import AS_GOOD, BETTER, CLAIMS, EXPERIMENTS, MARGINS, NETS
from benchmarks.claims.training import Row, unpacked

REPEATS, FAILS, UNKNOWN = "repeats", "does not repeat", "not testable here"
_LEVEL = 0.95
_REASONS = {
    (REPEATS, BETTER): "the interval lies above 0",
    (FAILS, BETTER): "the interval excludes an advantage of the margin",
    (REPEATS, AS_GOOD): "the interval excludes a loss of the margin",
    (FAILS, AS_GOOD): "the loss exceeds the margin",
    (UNKNOWN, BETTER): "the interval allows both",
    (UNKNOWN, AS_GOOD): "the interval allows both",
}
_HEAD = """\
# The paper's claims in miniature

<!-- python -m benchmarks claims report -->

Small networks, trained on two CPU cores on small data that comes inside Python packages. The claims of the
paper are about ImageNet, COCO-stuff and LIP: what repeats here need not repeat there, and the reverse. The
[plan](../benchmarks/claims/PLAN.md) has the tasks, the splits and the rule for the verdicts. It was committed
before the first run on test data.

{runs} trainings, {tests} of them judged on test data, {hours:.1f} hours of one core. Learning rates come from
validation data. Differences are in points, paired by seed, with 95 % intervals. With {claims} claims, one or
two intervals can miss by chance.{state}
"""
_ATTENTION = """\
Entropy is that of a token's attention over the pixels; equal weights have 1. The share is the part of the
attention that lies on the objects; tokens that ignore objects have the objects' area. Means over images,
tokens, and blocks or levels; intervals over seeds. Pooling's weights are fixed.
"""


class Difference(NamedTuple):
    """A mean difference in points, its 95 % interval, and the number of seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def interval(by_seed: Any, by_image: Any = None) -> Difference:
    """The mean of differences between seeds, and its interval.

    With `by_image`, the same differences as means for each test image, the variance of the mean is that
    between seeds plus that between images, with Satterthwaite's degrees of freedom. Without, it is Student's
    interval.
    """
    from scipy import stats

    samples = [np.asarray(each) for each in (by_seed, by_image) if each is not None]
    parts = [(float(each.var(ddof=1)) / len(each), len(each) - 1) for each in samples]
    total = sum(variance for variance, _ in parts)
    mean, half = float(np.mean(by_seed)), 0.0
    if total > 0:
        freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
        half = float(stats.t.ppf((1 + _LEVEL) / 2, freedom)) * math.sqrt(total)
    return Difference(mean, mean - half, mean + half, len(by_seed))


def difference(ours: Iterable[Row], theirs: Iterable[Row]) -> Difference:
    """Of the scores of two networks on a task, paired by seed.

    Raises:
        ValueError: the seeds differ, or are fewer than two.
    """
    pair = [sorted(rows, key=lambda row: row.seed) for rows in (ours, theirs)]
    seeds = [[row.seed for row in rows] for rows in pair]
    if seeds[0] != seeds[1] or len(set(seeds[0])) != len(seeds[0]) or len(seeds[0]) < 2:
        raise ValueError(f"`ours` and `theirs` must have the same seeds, two or more, got {seeds}")
    scores = np.array([[row.score for row in rows] for rows in pair])
    by_image = None
    if not TASKS[pair[0][0].task].per_seed and all(row.hits for rows in pair for row in rows):
        hits = [np.array([unpacked(row.hits, row.images) for row in rows], dtype=float) for rows in pair]
        by_image = 100 * (hits[0] - hits[1]).mean(0)
    return interval(scores[0] - scores[1], by_image)


def verdict(found: Difference, kind: str, margin: float) -> str:
    """What an interval says of a claim.

    Example:
        >>> verdict(Difference(1.0, 0.2, 1.8, 5), BETTER, 0.5)
        'repeats'
    """
    least = -margin if kind == AS_GOOD else 0.0
    if found.low > least:
        return REPEATS
    return FAILS if found.high < least + (margin if kind == BETTER else 0.0) else UNKNOWN


def write(facts: dict[str, Any], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write claims.md and claims.png from the results that there are; returns the paths."""
    tests = [row for row in rows if row.part == TEST]
    numbers = {"runs": len(rows), "tests": len(tests), "hours": sum(row.seconds for row in rows) / 3600}
    state = "" if facts["complete"] else " **The run is not complete.**"
    lines = [_HEAD.format(**numbers, claims=len(CLAIMS), state=state)]
    for letter, title in EXPERIMENTS.items():
        lines += [
            f"## ({letter}) {title}\n",
            *(_attention(tests) if letter == "e" else _judged(letter, tests)),
        ]
    lines += [
        "## Curves\n",
        "Scores on validation data during training, means over seeds.\n",
        "![](claims.png)",
    ]
    curves = _curves(rows)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "claims.md", folder / "claims.png"]
    paths[0].write_text("\n".join(lines) + "\n")
    curves.savefig(paths[1], dpi=100)
    return paths


def _of(rows: Iterable[Row], task: str, net: str) -> dict[int, Row]:
    """By seed."""
    return {row.seed: row for row in rows if (row.task, row.net) == (task, net)}


def _judged(letter: str, rows: Sequence[Row]) -> list[str]:
    table, sentences, nets = [], [], dict[str, dict[str, None]]()
    for claim in (each for each in CLAIMS if each.experiment == letter):
        ours, theirs = (_of(rows, claim.task, net) for net in (claim.net, claim.than))
        nets.setdefault(claim.task, {}).update({claim.net: None, claim.than: None})
        what = f"`{claim.net}` is {claim.kind} `{claim.than}`"
        both = [seed for seed in ours if seed in theirs]
        if len(both) < 2:
            sentences.append(f"- On {claim.task}, {what}: not run.")
            continue
        found = difference(*([side[seed] for seed in both] for side in (ours, theirs)))
        said = verdict(found, claim.kind, MARGINS[claim.task])
        times = ours[both[0]].macs / theirs[both[0]].macs
        table.append([what, claim.source, claim.task, MARGINS[claim.task], found, found.seeds, said])
        opposite = claim.kind == BETTER and found.high < 0
        reason = "the interval lies below 0" if opposite else _REASONS[said, claim.kind]
        sentences.append(f"- On {claim.task}, {what}, with {times:.2f} times the MACs: **{said}**; {reason}.")
    head = ["claim", "of", "task", "margin", "difference", "seeds", "verdict"]
    lines = [_table(head, table), *sentences, ""]
    for task, names in nets.items():
        score = "mean intersection over union" if TASKS[task].segmentation else "accuracy"
        lines += [f"{task.capitalize()}, {score} in percent:\n", _scores(rows, task, names)]
    return lines


def _scores(rows: Sequence[Row], task: str, nets: Iterable[str]) -> str:
    table = []
    for net in nets:
        found = list(_of(rows, task, net).values())
        scores = [row.score for row in found]
        for row in found[:1]:
            millions = [f"{count / 1e6:.2f}" for count in (row.macs, row.executed)]
            spread = f"{min(scores):.2f} to {max(scores):.2f}"
            diverged = sum(each.status != "ok" for each in found)
            thousands = f"{row.parameters / 1e3:.0f}"
            table.append(
                [f"`{net}`", f"{np.mean(scores):.2f}", spread, diverged, row.lr, *millions, thousands]
            )
    head = [
        "network",
        "test",
        "seeds",
        "diverged",
        "learning rate",
        "MACs (M)",
        "executed (M)",
        "parameters (k)",
    ]
    return _table(head, table)


def _attention(rows: Sequence[Row]) -> list[str]:
    table = []
    for task, net in ((task, net) for task, nets in NETS.items() for net in nets):
        found = [row for row in _of(rows, task, net).values() if row.entropy is not None]
        if len(found) > 1:
            numbers = np.array([[row.entropy, row.share, row.area] for row in found], dtype=float)
            gap = interval(100 * (numbers[:, 1] - numbers[:, 2]))
            means = [f"{value:.3f}" for value in numbers.mean(0)]
            fixed = gap.low == gap.high  # as pooling's
            said = "fixed" if fixed else verdict(gap, BETTER, 1.0)
            table.append([task, f"`{net}`", *means, f"{gap.mean:+.2f}" if fixed else gap, said])
    head = ["task", "network", "entropy", "share", "area", "share - area, points", "tokens look at objects"]
    return [_ATTENTION, _table(head, table)]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    from tabulate import tabulate

    return str(tabulate(rows, head, tablefmt="github", disable_numparse=True)) + "\n"


def _curves(rows: Sequence[Row]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 12), layout="constrained")
    panels = figure.subplots(3, 2).flatten()
    panels[-1].set_visible(False)
    # Without tests: the trainings that choose a learning rate.
    rows = [row for row in rows if row.part == TEST] or rows
    for panel, (task, nets) in zip(panels, NETS.items(), strict=False):
        panel.set(title=task, xlabel="steps", ylabel="percent")
        panel.grid(alpha=0.4)
        for index, net in enumerate(nets):
            found = [row for row in _of(rows, task, net).values() if row.status == "ok"]
            if found:
                mean = np.mean([[float(word) for word in row.validation.split()] for row in found], 0)
                steps = TASKS[task].steps * np.arange(1, len(mean) + 1) / len(mean)
                panel.plot(steps, mean, marker=".", linestyle="-" if index < 6 else "--", label=net)
                panel.legend(fontsize=8, ncols=2)
    return figure

"""docs/claims.md: paired differences with intervals, a sentence for each claim, curves and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.claims import data, plan
from benchmarks.claims.data import TASKS, TEST, VALIDATION
from benchmarks.claims.plan import AS_GOOD, CLAIMS, EXPERIMENTS, MARGINS, NETS, Claim
from benchmarks.claims.training import Row, unpacked

REPEATS, FAILS, UNKNOWN = "repeats", "does not repeat", "not testable here"
_LEVEL = 0.95


class Difference(NamedTuple):
    """A mean difference in points, its 95 % interval, and the number of seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def difference(ours: Sequence[Row], theirs: Sequence[Row], images: int | None = None) -> Difference:
    """Of the scores of two networks, paired by seed.

    Where all seeds have the same test images, the interval covers the choice of these too: the variance of
    the mean is that between seeds plus that between images, with Welch's and Satterthwaite's degrees of
    freedom. Otherwise the seeds draw their own images, or there is one image, and it is Student's.

    Args:
        ours, theirs: rows of the same seeds.
        images: how many test images all seeds have in common; None for none.

    Raises:
        ValueError: other seeds, or fewer than two.
    """
    pairs = [sorted(rows, key=lambda row: row.seed) for rows in (ours, theirs)]
    seeds = [[row.seed for row in rows] for rows in pairs]
    if seeds[0] != seeds[1] or len(set(seeds[0])) != len(seeds[0]) or len(seeds[0]) < 2:
        raise ValueError(f"`ours` and `theirs` must have the same seeds, two or more, got {seeds}")
    scores = np.array([[row.score for row in rows] for rows in pairs])
    by_seed = scores[0] - scores[1]
    by_image = None
    if images is not None and all(row.hits for rows in pairs for row in rows):
        hits = [np.array([unpacked(row.hits, images) for row in rows], dtype=float) for rows in pairs]
        by_image = 100 * (hits[0] - hits[1]).mean(0)
    return interval(by_seed, by_image)


def interval(by_seed: Any, by_image: Any = None) -> Difference:
    """The mean of differences, one for each seed and one for each image, with its interval."""
    from scipy import stats

    parts = [
        (np.var(each, ddof=1) / len(each), len(each) - 1) for each in (by_seed, by_image) if each is not None
    ]
    total = sum(variance for variance, _ in parts)
    mean, half = float(np.mean(by_seed)), 0.0
    if total > 0:
        freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
        half = float(stats.t.ppf((1 + _LEVEL) / 2, freedom) * math.sqrt(total))
    return Difference(mean, mean - half, mean + half, len(by_seed))


def verdict(found: Difference, kind: str, margin: float) -> str:
    """What an interval says of a claim; PLAN.md has the rule.

    Example:
        >>> verdict(Difference(1.0, 0.2, 1.8, 5), plan.BETTER, 0.5)
        'repeats'
    """
    least = -margin if kind == AS_GOOD else 0.0
    if found.low > least:
        return REPEATS
    return FAILS if found.high < least + (0.0 if kind == AS_GOOD else margin) else UNKNOWN


def write(facts: dict[str, Any], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write claims.md and claims.png, of as many results as there are; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "claims.md", folder / "claims.png"]
    paths[0].write_text("\n".join(_page(facts, rows)) + "\n")
    _curves(rows).savefig(paths[1], dpi=110)
    return paths


def _of(rows: Sequence[Row], task: str, net: str) -> list[Row]:
    return [row for row in rows if (row.task, row.net, row.part) == (task, net, TEST)]


def _common(task: str) -> int | None:
    """How many test images all seeds have in common, where accuracies are counted on them."""
    return (
        None
        if TASKS[task].per_seed or TASKS[task].segmentation
        else len(data.TASKS[task].fixed(TEST, 0).labels)
    )


def _page(facts: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    done = len([row for row in rows if row.part == TEST])
    hours = sum(row.seconds for row in rows) / 3600
    unit = {True: "mean intersection over union", False: "accuracy"}
    lines = [
        "# The paper's claims in miniature",
        "",
        "<!-- python -m benchmarks claims report -->",
        "",
        "Small networks on small data that comes inside Python packages, trained on two CPU cores. The claims of",
        "the paper are about ImageNet, COCO-stuff and LIP. What repeats here need not repeat there, and the other",
        "way round. Tasks, splits, learning rates, comparisons and the rule for the verdicts are in the",
        "[plan](../benchmarks/claims/PLAN.md), which was committed before the first run on test data.",
        "",
        f"{len(rows)} trainings, {done} of them judged on test data, {hours:.1f} hours of one core. Learning rates",
        "come from validation data. Differences are in points, paired by seed, with 95 % intervals. With",
        f"{len(CLAIMS)} claims, one interval or two can miss by chance. "
        + ("" if facts.get("complete") else "**The run is not complete.**"),
        "",
    ]
    for letter, title in EXPERIMENTS.items():
        lines += [f"## ({letter}) {title}", ""]
        claims = [claim for claim in CLAIMS if claim.experiment == letter]
        if letter == "e":
            lines += _attention(rows)
            continue
        lines += [
            "| claim | of | task | difference | seeds | verdict |",
            "| --- | --- | --- | ---: | ---: | --- |",
        ]
        sentences = []
        for claim in claims:
            cells, sentence = _judged(claim, rows)
            lines.append("| " + " | ".join(cells) + " |")
            sentences.append(f"- {sentence}")
        lines += ["", *sentences, ""]
        for task in dict.fromkeys(claim.task for claim in claims):
            nets = [net for net in NETS[task] if letter == "b" or any(net in claim[3:5] for claim in claims)]
            lines += [f"{task.capitalize()}, {unit[TASKS[task].segmentation]} in percent:", ""]
            lines += _scores(rows, task, nets)
    lines += [
        "## Curves",
        "",
        "Validation score during training, mean over the seeds.",
        "",
        "![Curves](claims.png)",
    ]
    return lines


def _judged(claim: Claim, rows: Sequence[Row]) -> tuple[list[str], str]:
    what = f"`{claim.net}` is {claim.kind} `{claim.than}`"
    ours, theirs = _of(rows, claim.task, claim.net), _of(rows, claim.task, claim.than)
    shared = {row.seed for row in ours} & {row.seed for row in theirs}
    if len(shared) < 2:
        return [
            what,
            claim.source,
            claim.task,
            "-",
            str(len(shared)),
            "not run",
        ], f"{what} on {claim.task}: not run."
    pair = [[row for row in side if row.seed in shared] for side in (ours, theirs)]
    found = difference(pair[0], pair[1], _common(claim.task))
    said = verdict(found, claim.kind, MARGINS[claim.task])
    macs = pair[0][0].macs / pair[1][0].macs
    reason = {
        REPEATS: "the interval lies above " + ("0" if claim.kind != AS_GOOD else "minus the margin"),
        FAILS: "the interval excludes an advantage over the margin"
        if claim.kind != AS_GOOD
        else "it is worse",
        UNKNOWN: "the interval is too wide for either answer",
    }[said]
    cells = [what, claim.source, claim.task, str(found), str(found.seeds), f"**{said}**"]
    return cells, f"{what} on {claim.task}, with {macs:.2f} times its MACs: {said}; {reason}."


def _scores(rows: Sequence[Row], task: str, nets: Sequence[str]) -> list[str]:
    lines = [
        "| network | test | lowest, highest | learning rate | MACs (M) | executed (M) | parameters (k) |"
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for net in nets:
        found = _of(rows, task, net)
        if not found:
            continue
        scores, row = [each.score for each in found], found[0]
        diverged = sum(each.status != "ok" for each in found)
        lines.append(
            f"| `{net}` | {np.mean(scores):.2f}{f' ({diverged} diverged)' if diverged else ''} | "
            f"{min(scores):.2f}, {max(scores):.2f} | {row.lr:g} | {row.macs / 1e6:.2f} | "
            f"{row.executed / 1e6:.2f} | {row.parameters / 1e3:.0f} |"
        )
    return [*lines, ""]


def _attention(rows: Sequence[Row]) -> list[str]:
    lines = [
        "Entropy is that of a token's attention over the pixels, 1 for equal weights. The share is how much of",
        "the attention lies on the objects; it would be their area if tokens ignored them. Means over test images,",
        "tokens, and blocks or levels. The interval of the difference is over seeds.",
        "",
        "| task | network | entropy | share on objects | area of objects | difference in points | focus on objects |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for task, nets in NETS.items():
        for net in nets:
            found = [row for row in _of(rows, task, net) if None not in (row.entropy, row.share, row.area)]
            if len(found) < 2:
                continue
            columns = np.array([[row.entropy, row.share, row.area] for row in found], dtype=float)
            gap = interval(100 * (columns[:, 1] - columns[:, 2]))
            means = " | ".join(f"{value:.3f}" for value in columns.mean(0))
            lines.append(f"| {task} | `{net}` | {means} | {gap} | **{verdict(gap, plan.BETTER, 1.0)}** |")
    return [*lines, ""]


def _curves(rows: Sequence[Row]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4 * math.ceil(len(NETS) / 2)), layout="constrained")
    panels = figure.subplots(math.ceil(len(NETS) / 2), 2, squeeze=False).flatten()
    for panel in panels[len(NETS) :]:
        panel.set_visible(False)
    for panel, (task, nets) in zip(panels, NETS.items(), strict=False):
        lowest = []
        for index, net in enumerate(nets):
            # Before there are tests: the choices of learning rates.
            found = _of(rows, task, net) or [
                r for r in rows if (r.task, r.net, r.part) == (task, net, VALIDATION)
            ]
            curves = [[float(score) for score in row.validation.split()] for row in found]
            whole = [curve for curve in curves if len(curve) == max(map(len, curves))]
            if not whole:
                continue
            mean = np.mean(whole, 0)
            steps = np.arange(1, len(mean) + 1) * TASKS[task].steps / len(mean)
            panel.plot(steps, mean, marker=".", linestyle="-" if index < 10 else "--", label=net)
            lowest.append(np.median(mean))
        if lowest:
            panel.set_ylim(bottom=max(0.0, 2 * min(lowest) - 100))
            panel.legend(fontsize=7, ncols=2)
        panel.set_title(task)
        panel.set_xlabel("steps")
        panel.set_ylabel("percent, validation")
        panel.grid(alpha=0.4)
    return figure

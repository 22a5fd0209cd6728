"""What is trained and compared; PLAN.md says it in words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.claims.data import TASKS, TEST, VALIDATION
from benchmarks.claims.training import Job, Row
from benchmarks.processes import UsageError

# Every network is tried at the three in the middle, and at one more where the best of them is at an edge.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
# Of the trainings that choose a rate; the tests have seeds from 0 on.
CHOOSING = 100
_STAGES = ("backbone", "conv", "conv-equal", "vt")
_ABLATIONS = (
    *("vt-filter", "vt-pooling", "vt-clustering", "vt-none", "vt-graph"),
    *("vt-32", "vt-64", "vt-no-projector"),
)
_NECKS = ("fpn", "vt-fpn", "vt-fpn-batch", "vt-fpn-none")
# The networks of a task, and with how many seeds each is tested.
NETS: dict[str, dict[str, int]] = {
    "animals": {**dict.fromkeys(_STAGES, 5), **dict.fromkeys(_ABLATIONS, 3)},
    "digits": dict.fromkeys(_STAGES, 5),
    "pairs": dict.fromkeys((*_STAGES, "conv-hidden", "vt-none"), 5),
    "scenes": dict.fromkeys(_NECKS, 3),
    "nuclei": dict.fromkeys(_NECKS, 3),
}
# Points of accuracy or mean intersection over union below which a difference does not matter.
MARGINS = {"animals": 0.5, "digits": 0.5, "pairs": 1.0, "scenes": 1.0, "nuclei": 1.0}
BETTER, AS_GOOD = "better than", "as good as"


class Claim(NamedTuple):
    """That a network is better than another one, or not worse by more than the margin."""

    experiment: str
    source: str
    task: str
    net: str
    than: str
    kind: str = BETTER


EXPERIMENTS = {
    "a": "The last stage of a classifier",
    "b": "Ablations of the VT stage",
    "c": "Feature pyramids",
    "d": "A relational task",
    "e": "Attention of the tokens",
}
CLAIMS = (
    *(
        Claim("a", "tables 1 and 8" if than != "backbone" else "control", task, "vt", than)
        for task in ("animals", "digits")
        for than in ("conv", "conv-equal", "backbone")
    ),
    Claim("b", "table 3", "animals", "vt", "vt-pooling"),
    Claim("b", "table 3", "animals", "vt-clustering", "vt-pooling"),
    Claim("b", "table 4", "animals", "vt", "vt-filter"),
    Claim("b", "table 5", "animals", "vt", "vt-none"),
    Claim("b", "table 5", "animals", "vt", "vt-graph"),
    Claim("b", "table 6", "animals", "vt", "vt-32", AS_GOOD),
    Claim("b", "table 6", "animals", "vt", "vt-64", AS_GOOD),
    Claim("b", "table 7", "animals", "vt", "vt-no-projector"),
    *(
        Claim("c", "tables 9 and 10", task, net, "fpn", AS_GOOD)
        for task in ("scenes", "nuclei")
        for net in ("vt-fpn", "vt-fpn-batch")
    ),
    *(Claim("c", "ours", task, "vt-fpn", "vt-fpn-none") for task in ("scenes", "nuclei")),
    *(Claim("d", "ours", "pairs", "vt", than) for than in ("conv", "conv-equal", "conv-hidden", "vt-none")),
    Claim("d", "control", "pairs", "vt", "backbone"),
)  # fmt: skip


def choosing(rows: Iterable[Row] = ()) -> list[Job]:
    """The trainings that choose a learning rate for each network of each task; `rows` are those done."""
    scores = {row.key: row.score for row in rows if row.part == VALIDATION}
    jobs = []
    for task, net in ((task, net) for task, nets in NETS.items() for net in nets):
        known: dict[str, Any] = {
            "task": task,
            "net": net,
            "part": VALIDATION,
            "seed": CHOOSING,
            "steps": TASKS[task].steps,
        }
        tried = {lr: Job(**known, lr=lr) for lr in RATES}
        first, *middle, last = RATES
        jobs += [tried[lr] for lr in middle]
        if all(tried[lr].key in scores for lr in middle):
            best = max(middle, key=lambda lr: scores[tried[lr].key])
            edges = {middle[0]: first, middle[-1]: last}
            jobs += [tried[edges[best]]] if best in edges else []
    return jobs


def choices(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """The learning rate of each task and network: the best one on validation data, of equals the least.

    Raises:
        UsageError: a training that chooses is missing.
    """
    rows = list(rows)
    scores = {row.key: row.score for row in rows if row.part == VALIDATION}
    jobs = choosing(rows)
    missing = [job for job in jobs if job.key not in scores]
    if missing:
        raise UsageError(
            f"test data is out of reach until every learning rate has been chosen; {len(missing)} trainings "
            f"are missing, the first is {missing[0].net} on {missing[0].task} at {missing[0].lr:g}"
        )
    found: dict[tuple[str, str], float] = {}
    for job in sorted(jobs, key=lambda job: (-scores[job.key], job.lr)):
        found.setdefault((job.task, job.net), job.lr)
    return found


def tests(rows: Iterable[Row]) -> list[Job]:
    """The trainings that are judged on test data; raises as :func:`choices` does."""
    chosen = choices(rows)
    return [
        Job(task=task, net=net, part=TEST, lr=chosen[task, net], seed=seed, steps=TASKS[task].steps)
        for task, nets in NETS.items()
        for net, count in nets.items()
        for seed in range(count)
    ]


def digest() -> str:
    """Of the files that decide what is computed: results of another plan are not continued."""
    folder = Path(__file__).parent
    files = ("data.py", "nets.py", "plan.py", "training.py")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in files)).hexdigest()[:16]

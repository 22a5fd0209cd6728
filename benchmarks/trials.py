"""What became of launch settings that were compiled, with one version of Triton or with several."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from vt_fast.backends.triton.samples import KERNELS, Shape
from vt_fast.backends.triton.settings import Problem, Setting


@dataclass(frozen=True)
class Class:
    """What a table has one entry for, and the shape that stands for it."""

    op: str
    kind: str
    layout: str
    channels: int
    rows: int
    few: bool

    @property
    def shape(self) -> Shape:
        """With maps of about 100 MB."""
        pixels = 196 if self.few else 1 << 15
        samples = max(8, (1 << 26) // (self.channels * pixels)) if not self.few else 256
        return (samples, pixels, self.channels, self.rows)

    @property
    def problem(self) -> Problem:
        """By which settings are found."""
        kernel = KERNELS[self.op]
        return Problem(kernel, self.kind, self.layout, self.channels, self.rows, self.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Of the maps."""
        return torch.bfloat16 if self.kind == "16" else torch.float32


class Tried(NamedTuple):
    """What became of a setting: seconds by the model, the least they could be, shared memory; or a fault."""

    seconds: float = 0.0
    floor: float = 0.0
    shared: int = 0
    fault: str | None = None


# By setting, and by the version of Triton.
Trials = dict[Setting, dict[str, Tried]]


def worst(those: Collection[Tried]) -> Tried:
    """The most time, and the most shared memory."""
    return max(those, key=lambda one: one.seconds)._replace(shared=max(one.shared for one in those))


def load(path: Path, target: str) -> dict[Class, Trials]:
    """What was saved of a target; nothing if there is no such file yet.

    Raises:
        ValueError: it is of another target.
    """
    if not path.exists():
        return {}
    data = json.loads(path.read_text())
    if data["target"] != target:
        raise ValueError(f"{path} must be of trials for {target}, got {data['target']}")
    return {
        Class(**each): {
            Setting(**setting): {version: Tried(**one) for version, one in by_version.items()}
            for setting, by_version in those
        }
        for each, those in data["trials"]
    }


def save(trials: dict[Class, Trials], path: Path, target: str) -> None:
    """For the next run, with another Triton."""
    rows = [
        [
            asdict(each),
            [
                [asdict(setting), {version: one._asdict() for version, one in by_version.items()}]
                for setting, by_version in those.items()
            ],
        ]
        for each, those in trials.items()
    ]
    path.write_text(json.dumps({"target": target, "trials": rows}))

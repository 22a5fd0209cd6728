"""What a run of ``python -m benchmarks counters`` leaves: launches, each with its counters."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.records import write

SCHEMA = 1


@dataclass
class Counted:
    """One launch of a kernel: whose call it was, how it was launched, and its counters by ncu's names.

    ``compulsory_bytes``: of the maps that it must read or write, None of a kernel that handles none.
    """

    op: str
    dtype: str
    layout: str
    shape: str
    kernel: str
    setting: str
    programs: int
    compulsory_bytes: int | None
    metrics: dict[str, float]


@dataclass
class CounterRun:
    """All launches, and what they were made on."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    launches: list[Counted]
    schema: int = SCHEMA
    problems: list[str] = field(default_factory=list)


def save(run: CounterRun, path: Path) -> None:
    """Write a run as JSON, see :func:`benchmarks.records.write`."""
    write(asdict(run), path)


def load(path: Path) -> CounterRun:
    """Read a run that fits its schema."""
    data = json.loads(path.read_text())
    return CounterRun(**data | {"launches": [Counted(**each) for each in data["launches"]]})

"""What a run of networks leaves behind, to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.records import AnyRun, write
from benchmarks.timing import HasSeconds

SCHEMA = 1


@dataclass
class Side(HasSeconds):
    """One side in one pass: all times of a step, or the reason why there are none.

    ``macs``: multiply-accumulates of an inference. ``peak_bytes``: above parameters and inputs.
    """

    name: str
    macs: int | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    reason: str | None = None


@dataclass
class NetworkCell:
    """One case in one pass, with all sides."""

    kind: str
    name: str
    batch: int
    dtype: str
    layout: str
    threads: int | None
    which: str
    sides: list[Side]

    def side(self, name: str) -> Side | None:
        """A side that has a figure, by its name."""
        return next((side for side in self.sides if side.name == name and side.seconds), None)


@dataclass
class NetworkRun(AnyRun):
    """One run of ``python -m benchmarks models``."""

    cells: list[NetworkCell]
    schema: int = SCHEMA

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return bool(self.settings["device"] != "cpu")


def cell_from(data: dict[str, Any]) -> NetworkCell:
    """A cell again, from :func:`dataclasses.asdict`."""
    return NetworkCell(**{**data, "sides": [Side(**side) for side in data["sides"]]})


def save(run: NetworkRun, path: Path) -> None:
    """Write a run as JSON, see :func:`benchmarks.records.write`."""
    write(dataclasses.asdict(run), path)


def load(path: Path) -> NetworkRun:
    """Read a run.

    Raises:
        ValueError: the file is of another schema.
    """
    data = json.loads(path.read_text())
    if data.get("schema") != SCHEMA or any("sides" not in cell for cell in data.get("cells", [])):
        raise ValueError(f"{path} must be a result of python -m benchmarks models, with schema {SCHEMA}")
    return NetworkRun(**{**data, "cells": [cell_from(cell) for cell in data["cells"]]})

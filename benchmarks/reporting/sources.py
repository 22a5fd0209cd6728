"""Result files of each kind, as the report reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from benchmarks import records
from benchmarks.networks import records as networks


class Source(NamedTuple):
    """One file: its name without the suffix, and what it holds."""

    name: str
    run: records.Run | networks.NetworkRun


def read(path: Path) -> Source:
    """Read a file of any kind.

    Raises:
        OSError: there is no such file.
        ValueError: it is no JSON, or not of a kind or schema that is known.
    """
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be a result file, in JSON: {error}") from None
    if not (isinstance(data, dict) and {"machine", "settings", "cells"} <= data.keys()):
        raise ValueError(f"{path} must be a result of a run of python -m benchmarks")
    return Source(path.stem, (networks if "networks" in data["settings"] else records).load(path))


def read_all(paths: list[Path]) -> list[Source]:
    """Read files in turn; of files with the same name, the second becomes ``name-2``."""
    found: list[Source] = []
    for path in paths:
        source = read(path)
        count = sum(path.stem == other.stem for other in paths[: len(found)])
        found.append(source._replace(name=f"{source.name}-{count + 1}") if count else source)
    return found

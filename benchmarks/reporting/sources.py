"""Result files of each kind, as the report reads them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks import figures


class Source(NamedTuple):
    """One file: its name without the suffix, and what it holds."""

    name: str
    run: figures.AnyRun


def read(path: Path) -> Source:
    """Read a file of any kind.

    Raises:
        OSError: there is no such file.
        ValueError: it is no result of a run, or does not fit its schema.
    """
    return Source(path.stem, figures.load(path))


def read_all(paths: list[Path]) -> list[Source]:
    """Read files in turn; of files with the same name, the second becomes ``name-2``."""
    found: list[Source] = []
    for path in paths:
        source = read(path)
        count = sum(path.stem == other.stem for other in paths[: len(found)])
        found.append(source._replace(name=f"{source.name}-{count + 1}") if count else source)
    return found

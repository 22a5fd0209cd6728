"""Where, with what and how a run was made: all that its file says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.figures import AnyRun
from benchmarks.reporting.blocks import Block, Heading, Table

# Told elsewhere in the report, case by case.
_ELSEWHERE = ("left_out",)


def section(run: AnyRun) -> list[Block]:
    """Machine and settings as two tables, names with dots for what lies in something else."""
    settings = {name: value for name, value in run.settings.items() if name not in _ELSEWHERE}
    return [
        Heading("Environment"),
        Table(["machine", ""], [list(row) for row in _rows(run.machine)]),
        Table(["setting", ""], [list(row) for row in _rows(settings)]),
    ]


def _rows(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for item in value:
                known = {key: each for key, each in item.items() if each is not None}
                yield f"{prefix}{name}", ", ".join(f"{key}: {_text(known[key])}" for key in known)
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    """A value as it is read.

    Example:
        >>> _text([1.5, "a"]), _text(None), _text(True), _text(25276510208)
        ('1.5, a', 'unknown', 'yes', '25276510208')
    """
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)

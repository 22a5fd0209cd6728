"""The counts as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby

from tools.paper.counting import Counted

_COLUMNS = (
    "network",
    "tables",
    "source",
    "MACs: paper",
    "as written",
    "residual",
    "as executed",
    "parameters (M): paper",
    "counted",
    "residual",
    "note",
)
_LEFT = ("network", "tables", "source", "note")


def markdown(counts: Iterable[Counted]) -> str:
    """A table under each heading."""
    parts = []
    rule = _line(["---" if name in _LEFT else "---:" for name in _COLUMNS])
    for heading, group in groupby(counts, key=lambda counted: counted.row.table):
        lines = [f"## {heading}", "", _line(_COLUMNS), rule]
        parts.append("\n".join([*lines, *(_line(_cells(counted)) for counted in group)]))
    return "\n\n".join(parts) + "\n"


def as_csv(counts: Iterable[Counted]) -> str:
    """One line per row, with all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["heading", "network", "tables", "source", "macs_paper", "macs_written", "macs_residual_percent",
         "macs_executed", "parameters_paper", "parameters_millions", "parameters_residual_percent", "note",
         "counted_by_fvcore_too"]
    )  # fmt: skip
    for counted in counts:
        row = counted.row
        writer.writerow(
            [row.table, row.name, row.tables, row.source, row.printed_macs, counted.written, counted.residual,
             counted.executed, row.printed_parameters, counted.parameters, counted.parameter_residual,
             row.note, counted.by_both]
        )  # fmt: skip
    return out.getvalue()


def _cells(counted: Counted) -> list[str]:
    row = counted.row
    # As many as are printed, and two at least of what is not in millions.
    digits = 1 if row.unit == 1e6 else max(2, len(row.printed_macs.partition(".")[2]))
    return [
        row.name,
        row.tables or "-",
        row.source,
        row.printed_macs or "-",
        f"{counted.written:.{digits}f}",
        _percent(counted.residual),
        f"{counted.executed:.{digits}f}",
        row.printed_parameters or "-",
        f"{counted.parameters:.2f}",
        _percent(counted.parameter_residual),
        row.note or "-",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f} %"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

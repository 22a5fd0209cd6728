"""The counts as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby

from tools.paper.counting import Counted

_COLUMNS = (
    "network",
    "MACs: paper",
    "as written",
    "residual",
    "as executed",
    "share of as written",
    "parameters (M): paper",
    "counted",
    "residual",
)


def markdown(counts: Iterable[Counted]) -> str:
    """A table under each heading."""
    parts = []
    for heading, group in groupby(counts, key=lambda counted: counted.row.table):
        members = list(group)
        lines = [f"## {heading}", "", _line(_COLUMNS), _line(["---", *["---:"] * (len(_COLUMNS) - 1)])]
        lines += [_line(_cells(counted)) for counted in members]
        if not all(counted.row.known for counted in members):
            note = (
                "No configuration is known that meets the printed counts: this row has the options of VT-R18."
            )
            lines += ["", f"\\* {note}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_csv(counts: Iterable[Counted]) -> str:
    """One line per row, with all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", "network", "macs_paper", "macs_written", "macs_residual_percent", "macs_executed",
         "parameters_paper", "parameters_millions", "parameters_residual_percent", "configuration_known",
         "counted_by_fvcore_too"]
    )  # fmt: skip
    for counted in counts:
        row = counted.row
        writer.writerow(
            [row.table, row.name, row.printed_macs, counted.written, counted.residual, counted.executed,
             row.printed_parameters, counted.parameters, counted.parameter_residual, row.known,
             counted.by_both]
        )  # fmt: skip
    return out.getvalue()


def _cells(counted: Counted) -> list[str]:
    row = counted.row
    digits = 1 if row.unit < 1e9 else 2
    return [
        row.name + ("" if row.known else " \\*"),
        row.printed_macs,
        f"{counted.written:.{digits}f}",
        _percent(counted.residual),
        f"{counted.executed:.{digits}f}",
        f"{100 * counted.executed / counted.written:.1f} %",
        row.printed_parameters or "-",
        f"{counted.parameters:.2f}",
        _percent(counted.parameter_residual),
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f} %"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

"""The counts as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby

from vt_fast.paper.counting import Counted

_COLUMNS = (
    "network",
    "MACs: paper",
    "as written",
    "residual",
    "as executed",
    "share of as written",
    "parameters (M): paper",
    "ours",
    "residual",
)


def markdown(rows: Iterable[Counted]) -> str:
    """A table for each heading."""
    parts = []
    for heading, group in groupby(rows, key=lambda row: row.network.table):
        members = list(group)
        lines = [f"## {heading}", "", _line(_COLUMNS), _line(["---", *["---:"] * (len(_COLUMNS) - 1)])]
        lines += [_line(_cells(row)) for row in members]
        if not all(row.network.known for row in members):
            lines += ["", "\\* No configuration is known that meets the print: this one is ours."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_csv(rows: Iterable[Counted]) -> str:
    """One line a row, all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", "network", "macs_paper", "macs_written", "macs_residual_percent", "macs_executed",
         "parameters_paper", "parameters_millions", "parameters_residual_percent", "configuration_known",
         "counted_by_fvcore_too"]
    )  # fmt: skip
    for row in rows:
        network = row.network
        writer.writerow(
            [network.table, network.name, network.printed_macs, row.written, row.residual, row.executed,
             network.printed_parameters, row.parameters, row.parameter_residual, network.known, row.by_both]
        )  # fmt: skip
    return out.getvalue()


def _cells(row: Counted) -> list[str]:
    network = row.network
    digits = 1 if network.unit < 1e9 else 2
    return [
        network.name + ("" if network.known else " \\*"),
        network.printed_macs,
        f"{row.written:.{digits}f}",
        _percent(row.residual),
        f"{row.executed:.{digits}f}",
        f"{100 * row.executed / row.written:.1f} %",
        network.printed_parameters or "-",
        f"{row.parameters:.2f}",
        _percent(row.parameter_residual),
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f} %"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

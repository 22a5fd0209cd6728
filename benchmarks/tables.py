"""Tables for a terminal and a text file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the first column aligned left and the others right.

    >>> print(table(["net", "accuracy"], [["VT", "99.1 %"], ["convolution", "98.0 %"]]))
    net          accuracy
    -----------  --------
    VT             99.1 %
    convolution    98.0 %
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"`rows` must have {len(head)} cells each, got {len(row)}: {row}")
    # A cell of the head may have two lines.
    heads = [[part.rpartition("\n")[0] for part in head], [part.rpartition("\n")[2] for part in head]]
    heads = heads if any(heads[0]) else heads[1:]
    widths = [max(len(row[column]) for row in [*heads, *rows]) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([*map(line, heads), line(["-" * width for width in widths]), *map(line, rows)])


def wrapped(*notes: str) -> str:
    """Each note as a paragraph of lines of at most 100 columns."""
    return "\n".join(textwrap.fill(note, 100) for note in notes)

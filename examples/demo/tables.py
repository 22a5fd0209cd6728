"""Tables with notes, for a terminal and a text file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tabulate import tabulate


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *notes: str) -> str:
    """A table whose first column is aligned left and the others right, and a paragraph for each note.

    >>> print(table(["net", "MACs"], [["VT", "1 M"]], "For one image."))
    net      MACs
    -----  ------
    VT        1 M
    For one image.
    """
    columns = ["left", *["right"] * (len(head) - 1)]
    lines = [tabulate(rows, head, disable_numparse=True, colalign=columns)]
    return "\n".join([*lines, *(textwrap.fill(note, 100) for note in notes)])

"""What `patch` replaced, and what it left alone and why."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_WIDTH = 110


@dataclass(frozen=True)
class Row:
    """One module that was recognised.

    Attributes:
        path: its name in the model; "" for the model itself.
        host: its class, with the module that defines it.
        replaced: whether it runs the rewrite now, or would with `dry_run`.
        note: why it was not replaced; or which calls still run the host's own forward.
    """

    path: str
    host: str
    replaced: bool
    note: str


@dataclass(frozen=True)
class Report:
    """All modules that were recognised, in the order of `named_modules`. Printed, it is a table."""

    rows: tuple[Row, ...]
    dry_run: bool = False

    @property
    def replaced(self) -> tuple[str, ...]:
        """The paths of the modules that run their rewrite, or would with `dry_run`."""
        return tuple(row.path for row in self.rows if row.replaced)

    @property
    def refused(self) -> tuple[str, ...]:
        """The paths of those that were left alone."""
        return tuple(row.path for row in self.rows if not row.replaced)

    def __str__(self) -> str:
        if not self.rows:
            return "No module of the model is known to `vt_fast.patch`."
        yes = "would be" if self.dry_run else "yes"
        head = ("module", "class", "replaced", "")
        cells = [
            (row.path or "(the model)", _short(row.host), yes if row.replaced else "no", row.note)
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in (head, *cells)) for column in range(3)]
        left = sum(widths) + 6
        lines = []
        for line in (head, *cells):
            start = "  ".join(cell.ljust(width) for cell, width in zip(line[:3], widths, strict=True))
            notes = textwrap.wrap(line[3], max(_WIDTH - left, 40)) or [""]
            lines.append(f"{start}  {notes[0]}".rstrip())
            lines += [" " * left + each for each in notes[1:]]
        return "\n".join(lines)


def _short(host: str) -> str:
    """The package and the class: "timm AttentionPoolLatent"."""
    return f"{host.partition('.')[0]} {host.rpartition('.')[2]}"

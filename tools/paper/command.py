"""The command ``python -m vt_fast paper``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tools.paper.counting import counted
from tools.paper.rows import ROWS, Row
from tools.paper.tables import as_csv, markdown

_NOTE = """MACs are multiply-accumulates of convolutions and matrix products for one image. Parameters do not
include those of BatchNorm. "As written": every projection where the paper has it (backend "reference"),
counted by {by}. "As executed": with the
projections on the pixels folded into the tokens, counted by torch.
"""


def main(output: Path, only: str | None = None) -> int:
    """Count the rows, print the tables, and write them to ``output`` as paper.md and paper.csv.

    Args:
        output: a folder, created if it does not exist.
        only: count only rows whose name contains this.

    Returns:
        The exit status 0.

    Raises:
        ValueError: no row has such a name.
    """
    wanted = [row for name, row in ROWS.items() if only is None or only.lower() in name.lower()]
    if not wanted:
        raise ValueError(f"`--only` must be part of a row's name, got {only!r}")
    rows = [counted(row) for row in _progress(wanted)]
    by = "torch.utils.flop_counter and by fvcore, which agree" if rows[0].by_both else (
        "torch.utils.flop_counter (fvcore is not installed)"
    )  # fmt: skip
    text = markdown(rows) + "\n" + _NOTE.format(by=by)
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "paper.md").write_text(text)
    (output / "paper.csv").write_text(as_csv(rows))
    print(f"written to {output / 'paper.md'} and {output / 'paper.csv'}")
    return 0


def _progress(wanted: list[Row]) -> Iterable[Row]:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return wanted
    shown: Iterable[Row] = tqdm(wanted, unit="network", leave=False)
    return shown

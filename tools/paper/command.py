"""The command ``python -m vt_fast paper``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tools.paper.comparators import ROWS as COMPARATORS
from tools.paper.counting import counted
from tools.paper.rows import ROWS, Row
from tools.paper.tables import as_csv, markdown

_NOTE = """MACs are multiply-accumulates of convolutions and matrix products for one image. Parameters do not
include those of BatchNorm, unless a note says so. "As written": every projection where the paper has it
(backend "reference"), counted by {by}.
"As executed": with the projections on the pixels folded into the tokens, counted by torch. A position code on
a dynamic tokenizer costs there: its heads then pool all channels in one pass.

Tables: those of the ICCV version that print the row; "-" for its text, the first version and its slides.
Source of the configuration: "stated", the paper names the network; "fit", inferred from the printed counts,
which it meets; "ours", another choice, which meets them less well; "unexplained", we know none that meets
them. Counts cannot tell heads, norms, biases and scales.

Table 1 follows from one family: the first version's module, with as many tokens as the notes say. Tables 2
to 7 print other counts for VT-R18 and VT-R34, so their networks are not those of table 1.
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
    rows = {**ROWS, **COMPARATORS}
    wanted = [row for name, row in rows.items() if only is None or only.lower() in name.lower()]
    if not wanted:
        raise ValueError(f"`--only` must be part of a row's name, got {only!r}")
    counts = [counted(row) for row in _progress(wanted)]
    by = "torch.utils.flop_counter and by fvcore, which agree" if counts[0].by_both else (
        "torch.utils.flop_counter (fvcore is not installed)"
    )  # fmt: skip
    text = markdown(counts) + "\n" + _NOTE.format(by=by)
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "paper.md").write_text(text)
    (output / "paper.csv").write_text(as_csv(counts))
    print(f"written to {output / 'paper.md'} and {output / 'paper.csv'}")
    return 0


def _progress(wanted: list[Row]) -> Iterable[Row]:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return wanted
    shown: Iterable[Row] = tqdm(wanted, unit="network", leave=False)
    return shown

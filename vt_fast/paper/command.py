"""``python -m vt_fast paper``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vt_fast.paper.counting import counted
from vt_fast.paper.rows import Network, networks
from vt_fast.paper.tables import as_csv, markdown

_NOTE = """MACs are multiply-accumulates of convolutions and matrix products for one image; parameters leave
out BatchNorm's. "As written": every projection where the paper has it (backend "reference"), by
{by}. "As executed": after folding what acts on
the pixels into the tokens, by torch's counter.
"""


def main(output: Path, only: str | None = None) -> int:
    """Count all rows, print the tables, and write them to ``output`` as paper.md and paper.csv.

    Args:
        output: a folder, which is made.
        only: a part of the names of the rows wanted.

    Raises:
        ValueError: no row has such a name.
    """
    wanted = [network for network in networks() if only is None or only.lower() in network.name.lower()]
    if not wanted:
        raise ValueError(f"`--only` must be a part of a row's name, got {only!r}")
    rows = [counted(network) for network in _progress(wanted)]
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


def _progress(wanted: list[Network]) -> Iterable[Network]:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return wanted
    shown: Iterable[Network] = tqdm(wanted, unit="network", leave=False)
    return shown

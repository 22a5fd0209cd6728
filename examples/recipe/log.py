"""The log of a run, one JSON object per line, and its plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Append a line. A run that is killed before it saves logs the same epoch again when resumed."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def epochs(path: Path) -> list[Record]:
    """The last record of each epoch, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records: list[Record] = [json.loads(line) for line in lines if line]
    found = {record["epoch"]: record for record in records if record["kind"] == "epoch"}
    return [found[epoch] for epoch in sorted(found)]


def draw(path: Path) -> Path | None:
    """Plot the numbers of a log over the epochs into a file beside it; None without matplotlib."""
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        return None
    records = epochs(path)
    if not records:
        return None
    names = [name for name, value in records[-1].items() if isinstance(value, float)]
    figure, axes = plt.subplots(len(names), 1, sharex=True, squeeze=False, figsize=(6, 1.6 * len(names)))
    for axis, name in zip(axes[:, 0], names, strict=True):
        known = [record for record in records if name in record]
        axis.plot([record["epoch"] for record in known], [record[name] for record in known], marker=".")
        axis.set_ylabel(name)
    axes[-1, 0].set_xlabel("epochs")
    figure.tight_layout()
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture
